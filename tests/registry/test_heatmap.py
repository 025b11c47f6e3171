from __future__ import annotations

import html.parser
import math

import pytest
from matplotlib.image import imread

from arc_halo.errors import ConfigurationError
from arc_halo.registry import compare_models, create_model
from arc_halo.registry.differing import Distance, TensorDistance
from arc_halo.registry.heatmap import heat_map
from tests.fixtures.tensors import weights
from tests.store.test_deltas import trained


def distance(name, relative, *, is_float=True, unsound=0):
    moved = Distance(before=1.0, after=1.0, difference=relative**2, changed=int(relative > 0), unsound=unsound, count=9)
    return TensorDistance(name, "", is_float, moved)


def relatives(picture):
    return [[None if cell is None else pytest.approx(cell.relative_l2) for cell in row] for row in picture.cells]


MOVED = [
    distance("embeddings.word.weight", 0.5),
    *(distance(f"encoder.layer.{block}.attention.q.weight", 0.1) for block in range(3)),
    *(distance(f"encoder.layer.{block}.ffn.up.weight", 0.0) for block in range(2)),
    distance("embeddings.position_ids", 3.0, is_float=False),
]


def test_blocks_stand_below_each_other_and_modules_beside():
    picture = heat_map(MOVED, "a")
    assert picture.rows == ["embeddings.word", "block 0", "block 1", "block 2"]
    assert picture.columns == ["whole", "attention.q", "ffn.up"]
    half = 0.1 / math.sqrt(2)
    assert relatives(picture) == [[0.5, None, None], [half, 0.1, 0], [half, 0.1, 0], [0.1, 0.1, None]]


def test_weights_stand_with_their_biases_and_experts_together():
    picture = heat_map(
        [distance("h.0.mlp.c.weight", 0.3), distance("h.0.mlp.c.bias", 0.4)]
        + [distance(f"h.0.experts.{number}.w.weight", 0.1) for number in range(4)],
        "a",
    )
    assert picture.columns == ["whole", "mlp.c", "experts.*.w"]
    assert relatives(picture)[0][1:] == [math.sqrt((0.09 + 0.16) / 2), 0.1]


def test_stacks_are_told_apart():
    names = ["encoder.block.0.q.weight", "decoder.block.0.q.weight", "shared.weight", "scale"]
    picture = heat_map([distance(name, 0.1) for name in names], "a")
    assert picture.rows == ["encoder.block.0", "decoder.block.0", "shared", "scale"]


@pytest.mark.parametrize(
    ("relative", "bounds"), [([0.2, 0.003], (-3, 0)), ([0.1], (-1, 0)), ([], (-1, 0)), ([0.0, math.inf], (-1, 0))]
)
def test_the_scale_ends_at_powers_of_ten(relative, bounds):
    picture = heat_map([distance(f"w{number}", each) for number, each in enumerate(relative)], "a")
    assert picture.bounds() == bounds


class Table(html.parser.HTMLParser):
    """Texts of cells, and the tags there are."""

    def __init__(self, page):
        super().__init__()
        self.cells, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):  # noqa: ARG002  the base class calls it so
        self.tags.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "td" and data.strip():
            self.cells[-1] = data


def test_a_page_says_the_number_of_each_cell():
    table = Table(heat_map(MOVED, "a").to_html())
    assert table.cells == ["5e-1", "", "", *["7e-2", "1e-1", "0"] * 2, "1e-1", "1e-1", ""]
    assert "script" not in table.tags


def test_cells_that_are_not_finite_are_marked():
    table = Table(heat_map([distance("v", 0.0, unsound=2), distance("w", math.inf)], "a").to_html())
    assert table.cells == ["0 !", "∞"]


def test_names_are_no_markup():
    page = heat_map([distance("<script>.w", 0.1)], "<a> & b").to_html()
    assert "&lt;a&gt; &amp; b" in page
    assert "<script" not in page


def test_nothing_to_draw_is_a_picture_too(tmp_path):
    picture = heat_map([], "equal")
    assert "<table" in picture.to_html()
    picture.save_png(tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size


@pytest.mark.parametrize("blocks", [3, 60])
def test_a_picture_grows_with_the_blocks(tmp_path, blocks):
    distances = [distance(f"layers.{block}.q.weight", 10.0 ** -(block % 5)) for block in range(blocks)]
    heat_map(distances, "a → b").save_png(tmp_path / "map.png")
    height, _, _ = imread(tmp_path / "map.png").shape
    assert height > 18 * blocks


def test_a_comparison_shows_itself(session):
    before = {name: weights((30, 30), seed) for seed, name in enumerate(["layers.0.q.weight", "layers.1.q.weight"])}
    create_model(session, "a", {}, before)
    create_model(session, "b", {}, before | {"layers.1.q.weight": trained(before["layers.1.q.weight"])})
    comparison = compare_models(session, "a", "b", values=True)
    assert comparison.title == "a@1 → b@1"
    assert Table(comparison._repr_html_()).cells[:2] == ["0", "0"]
    assert "layers.1.q.weight" in compare_models(session, "a", "b")._repr_html_()


def test_without_matplotlib_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ConfigurationError, match="plot"):
        heat_map(MOVED, "a").save_png(tmp_path / "map.png")

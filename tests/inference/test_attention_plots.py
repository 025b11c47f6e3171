"""Pictures of attention."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib.image import imread

from arc_halo.errors import ConfigurationError
from arc_halo.inference.attention import (
    HeadFigures,
    HeadGrid,
    plot_head,
    plot_heads,
    put_attention,
    summarise_attention,
)
from tests.inference.patterns import add_served, attention

WORDS = ["the", "$x^$", "a\nline", "a word that is far too long"]


def head(path, index, number, **figures):
    usual = {"entropy": 1.0, "distance": 2.0, "first": 0.5, "previous": 0.25, "induction": None}
    return HeadFigures(path, index, number, 1, **(usual | figures))


def test_a_head_is_drawn_with_its_tokens():
    figure = plot_head(attention(1, 4)[0], WORDS, "h.0.attn, head 0").figure()
    axes = figure.axes[0]
    assert [each.get_text() for each in axes.get_xticklabels()] == [
        "the", "\\$x^\\$", "a\\nline", "a word that is …",
    ]  # fmt: skip
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left")) == ("key", "query", "h.0.attn, head 0")
    np.testing.assert_array_equal(axes.images[0].get_array(), attention(1, 4)[0])


def test_many_tokens_are_not_named():
    axes = plot_head(attention(1, 65)[0], ["token"] * 65).figure().axes[0]
    assert "token" not in [each.get_text() for each in axes.get_xticklabels()]


def test_the_strongest_keys_alone_can_be_drawn():
    summary = summarise_attention(attention(2, 9), range(9), top_count=2)
    drawn = plot_head(summary.strongest(1)).figure().axes[0].images[0].get_array()
    assert np.count_nonzero(drawn) == 17  # of the first query there is only one key


def test_heads_are_a_grid_of_layers(session):
    served = add_served(session)
    put_attention(session, served, 0, [1, 2, 1, 2], {0: attention(4, 4), 1: attention(4, 4, seed=1)})
    grid = plot_heads(session, served, "first")
    axes, bar = grid.figure().axes
    assert axes.images[0].get_array().shape == (2, 4)
    assert [each.get_text() for each in axes.get_yticklabels()] == ["0", "1"]
    assert bar.get_ylabel() == "attention on the first token"
    assert axes.images[0].get_clim() == (0, 1)


def test_what_is_not_known_has_no_colour_and_blocks_that_attend_twice_are_told_apart():
    heads = [head("h.0.attn", 0, 0), head("h.0.attn", 0, 1, induction=0.5), head("h.0.crossattention", 0, 0)]
    axes = HeadGrid(heads, "induction").figure().axes[0]
    np.testing.assert_array_equal(np.ma.getmaskarray(axes.images[0].get_array()), [[True, False], [True, True]])
    assert [each.get_text() for each in axes.get_yticklabels()] == ["h.0.attn", "h.0.crossattention"]


@pytest.mark.parametrize("picture", [plot_head(attention(1, 4)[0], WORDS), HeadGrid([head("a", 0, 0)]), HeadGrid([])])
def test_a_picture_is_a_file_and_an_image_in_a_notebook(picture, tmp_path):
    picture.save(str(tmp_path / "one.png"))
    assert imread(tmp_path / "one.png").shape[2] == 4
    for name in ("one.svg", "two.svg"):
        picture.save(tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert picture._repr_html_().startswith('<img alt="attention"')
    assert len(repr(picture)) < 80


def test_without_matplotlib_a_notebook_shows_text(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    picture = plot_head(attention(1, 4)[0])
    assert (picture._repr_png_(), picture._repr_html_()) == (None, None)
    with pytest.raises(ConfigurationError, match=r"arc-halo\[plot\]"):
        picture.save(tmp_path / "one.png")


def test_what_cannot_be_drawn_is_refused(session):
    with pytest.raises(ConfigurationError, match="give \\[queries, keys\\] of one head"):
        plot_head(attention(2, 4))
    with pytest.raises(ConfigurationError, match="3 labels"):
        plot_head(attention(1, 4)[0], WORDS[:3])
    with pytest.raises(ConfigurationError, match="not by 'size'"):
        plot_heads(session, "gpt", "size")

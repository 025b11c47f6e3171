from __future__ import annotations

import math
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arc_halo.errors import ConfigurationError
from arc_halo.registry import create_model, measure_distances
from arc_halo.registry.differing import _BLOCK, Distance, _compare, by_layer
from arc_halo.registry.heatmap import heat_map
from tests.fixtures.tensors import weights
from tests.store.test_deltas import trained

FLOATS = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6))


def distances(session, before, after):
    create_model(session, "a", {}, before)
    create_model(session, "b", {}, after)
    return {each.name: each.distance for each in measure_distances(session, "a", "b")}


def expected(before, after):
    before, after = (each.astype(np.float64).reshape(-1) for each in (before, after))
    norms = np.linalg.norm(before) * np.linalg.norm(after)
    return np.linalg.norm(after - before), np.abs(after - before).max(), before @ after / norms


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int32, ml_dtypes.float8_e4m3fn], ids=str)
def test_distances_are_those_of_numpy(session, dtype):
    before = (weights((1100, 700)) * 1000).astype(dtype)
    after = (weights((1100, 700), 2) * 1000).astype(dtype)
    found = distances(session, {"w": before, "same": before[:3]}, {"w": after, "same": before[:3]})
    assert found.keys() == {"w"}
    l2, largest, cosine = expected(before, after)
    assert found["w"].l2 == pytest.approx(l2)
    assert found["w"].max_abs == pytest.approx(largest)
    assert found["w"].cosine == pytest.approx(cosine, abs=1e-9)
    assert found["w"].count == before.size


def test_types_and_cuts_may_differ(session):
    whole = weights((3000, 384))
    half = whole.astype(ml_dtypes.bfloat16)
    found = distances(session, {"w": whole}, {"w": half})["w"]
    assert found.l2 == pytest.approx(expected(whole, half)[0])


def test_other_shapes_are_left_to_the_digests(session):
    assert distances(session, {"w": weights((3, 4))}, {"w": weights((4, 3))}) == {}


def test_what_is_not_finite_counts_as_changed_where_it_is_new(session):
    before = np.array([1, np.nan, np.inf, 2, 3], np.float32)
    after = np.array([1, np.nan, 5, np.nan, 4], np.float32)
    found = distances(session, {"w": before}, {"w": after})["w"]
    assert (found.changed, found.l2, found.max_abs) == (3, 1, 1)


def test_from_nothing_to_something(session):
    found = distances(session, {"w": np.zeros(3, np.float32)}, {"w": np.ones(3, np.float32)})["w"]
    assert (found.relative_l2, found.cosine) == (math.inf, None)


@settings(deadline=None)
@given(FLOATS, st.integers(0, 60))
def test_parts_add_up(values, at):
    before, after = values, values[::-1].copy()
    parts = Distance()
    for start, stop in pairwise([0, min(at, values.size), values.size]):
        parts.add(_compare(before[start:stop], after[start:stop]))
    whole = _compare(before, after)
    assert parts.changed == whole.changed
    assert parts.l2 == pytest.approx(whole.l2)


def test_a_tensor_of_several_blocks(session):
    before = weights((_BLOCK // 100 + 7, 300))
    found = distances(session, {"w": before}, {"w": trained(before)})["w"]
    assert found.l2 == pytest.approx(expected(before, trained(before))[0])


@pytest.fixture
def moved(session):
    names = [f"encoder.layer.{block}.{part}.weight" for block in range(3) for part in ("attention.q", "ffn.up")]
    before = {name: weights((30, 30), seed) for seed, name in enumerate([*names, "embeddings.word.weight"])}
    create_model(session, "a", {}, before)
    create_model(session, "b", {}, {name: trained(array, seed=5) for name, array in before.items()})
    return measure_distances(session, "a", "b")


def test_layers_add_up_their_tensors(moved):
    layers = by_layer(moved)
    assert sum(each.difference for each in layers.values()) == pytest.approx(
        sum(each.distance.difference for each in moved)
    )


def test_a_heat_map_has_blocks_down_and_parts_across(moved):
    picture = heat_map(moved)
    assert picture.rows == ["block 0", "block 1", "block 2", "embeddings"]
    assert picture.columns == ["attention.q", "ffn.up", "word"]
    assert [[cell is None for cell in row] for row in picture.cells] == [[False, False, True]] * 3 + [
        [True, True, False]
    ]


def test_pictures(moved, tmp_path):
    picture = heat_map(moved)
    page = picture.to_html("<a> & b")
    assert "&lt;a&gt; &amp; b" in page
    assert page.count("<td style") == 7
    assert "<script" not in page
    picture.save_png(tmp_path / "map.png", "a and b")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_a_picture_too():
    picture = heat_map([])
    assert "<table>" in picture.to_html("equal")


def test_without_matplotlib_it_says_how_to_get_it(moved, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ConfigurationError, match="plot"):
        heat_map(moved).save_png(tmp_path / "map.png", "a and b")

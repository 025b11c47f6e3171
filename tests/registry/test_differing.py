from __future__ import annotations

import math
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arc_halo.registry import compare_models, create_model, import_model, quantize_model
from arc_halo.registry.differing import _BLOCK, Distance, compare_numbers
from tests.fixtures.models import bert, write_folder
from tests.fixtures.tensors import fetched_chunks, weights
from tests.store.test_deltas import trained

FLOATS = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6))


def distances(session, before, after):
    create_model(session, "a", {}, before)
    create_model(session, "b", {}, after)
    return {each.name: each.distance for each in compare_models(session, "a", "b", values=True).distances}


def expected(before, after):
    before, after = (each.astype(np.float64).reshape(-1) for each in (before, after))
    norms = np.linalg.norm(before) * np.linalg.norm(after)
    return np.linalg.norm(after - before), np.abs(after - before).max(), before @ after / norms


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int32, ml_dtypes.float8_e4m3fn], ids=str)
def test_distances_are_those_of_numpy(session, dtype):
    before = (weights((1100, 700)) * 1000).astype(dtype)
    after = (weights((1100, 700), 2) * 1000).astype(dtype)
    found = distances(session, {"w": before, "same": before[:3]}, {"w": after, "same": before[:3]})
    assert found.keys() == {"w", "same"}
    assert (found["same"].l2, found["same"].changed, found["same"].count) == (0, 0, before[:3].size)
    assert found["same"].cosine == pytest.approx(1)
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
        parts.add(compare_numbers(before[start:stop], after[start:stop]))
    whole = compare_numbers(before, after)
    assert parts.changed == whole.changed
    assert parts.l2 == pytest.approx(whole.l2)


def test_a_tensor_of_several_blocks(session):
    before = weights((_BLOCK // 100 + 7, 300))
    found = distances(session, {"w": before}, {"w": trained(before)})["w"]
    assert found.l2 == pytest.approx(expected(before, trained(before))[0])


ROWS = 3000  # in chunks of 682 rows


@pytest.fixture
def grown():
    """A matrix of which one number moved, and which has new rows."""
    before = weights((ROWS, 384))
    after = np.concatenate([before, weights((10, 384), 9)])
    after[5, 7] += 0.5
    return before, after


def test_chunks_that_both_have_are_not_read(session, grown):
    before, after = grown[0], grown[1][:ROWS]
    create_model(session, "a", {}, {"w": before}, compression="none")
    create_model(session, "b", {}, {"w": after}, compression="none")
    with fetched_chunks(session) as fetched:
        (found,) = compare_models(session, "a", "b", values=True).distances
    assert sum(fetched) == 2
    l2, largest, cosine = expected(before, after)
    assert found.distance.l2 == pytest.approx(l2)
    assert found.distance.max_abs == pytest.approx(largest)
    assert found.distance.cosine == pytest.approx(cosine, abs=1e-12)
    assert found.distance.relative_l2 == pytest.approx(l2 / np.linalg.norm(before.astype(np.float64)))
    assert (found.distance.changed, found.distance.count) == (1, before.size)


@pytest.mark.parametrize("is_grown", [True, False], ids=["grown", "shrunk"])
def test_a_vocabulary_that_grew_is_compared_in_the_rows_both_have(session, grown, is_grown):
    before, after = grown if is_grown else grown[::-1]
    create_model(session, "a", {}, {"w": before}, compression="none")
    create_model(session, "b", {}, {"w": after}, compression="none")
    with fetched_chunks(session) as fetched:
        comparison = compare_models(session, "a", "b", values=True)
    assert sum(fetched) == 4  # the chunk that changed and the last one of the shorter, of both
    (found,) = comparison.distances
    assert found.distance.l2 == pytest.approx(0.5, rel=1e-6)
    assert found.distance.before == pytest.approx(np.square(before[:ROWS].astype(np.float64)).sum())
    assert found.distance.cosine == pytest.approx(expected(before[:ROWS], after[:ROWS])[2], abs=1e-12)
    assert (found.distance.changed, found.distance.count) == (1, ROWS * 384)
    assert [(each.change, each.reason) for each in comparison.differences] == [("resized", None)]


@pytest.mark.parametrize("at", [(5, 7), (2999, 0)], ids=["in a chunk that changed", "in one that did not"])
@pytest.mark.parametrize("bad", [np.nan, -np.inf], ids=str)
def test_chunks_are_left_unread_beside_what_is_not_finite(session, at, bad):
    before = weights((ROWS, 384))
    before[at] = bad
    after = before.copy()
    after[5, 8] += 0.5
    found = distances(session, {"w": before}, {"w": after})["w"]
    before[at] = after[at] = 0
    l2, _, cosine = expected(before, after)
    assert (found.changed, found.unsound, found.l2) == (1, 1, pytest.approx(l2))
    assert found.cosine == pytest.approx(cosine, abs=1e-12)


def test_an_equal_tensor_with_nan_is_at_no_distance(session):
    same = np.array([3, np.nan, 4], np.float32)
    found = distances(session, {"w": same}, {"w": same})["w"]
    assert (found.l2, found.relative_l2, found.changed, found.unsound) == (0, 0, 0, 1)
    assert found.before == pytest.approx(25)


def test_complex_numbers_are_compared_in_both_parts(session):
    before, after = np.array([1 + 1j, 2], np.complex64), np.array([1 + 3j, 2], np.complex64)
    assert distances(session, {"w": before}, {"w": after})["w"].l2 == pytest.approx(2)


def test_integers_too_large_for_a_float_are_told_apart(session):
    before = np.array([2**60, 5], np.int64)
    assert distances(session, {"w": before}, {"w": np.array([2**60 + 1, 5])})["w"].changed == 1


def test_what_has_no_elements_is_equal_or_grown(session):
    empty = np.zeros((0, 4), np.float32)
    found = distances(session, {"w": empty, "v": empty}, {"w": empty, "v": np.ones((2, 4), np.float32)})
    assert {name: (each.l2, each.count) for name, each in found.items()} == {"w": (0, 0), "v": (0, 0)}


def test_tied_tensors_are_read_once(session):
    before, after = weights((ROWS, 384)), weights((ROWS, 384), 2)
    create_model(session, "a", {}, {"w": before, "v": before}, compression="none")
    create_model(session, "b", {}, {"w": after, "v": after}, compression="none")
    with fetched_chunks(session) as fetched:
        first, second = compare_models(session, "a", "b", values=True).distances
    assert sum(fetched) == 2 * 5
    assert first.distance == second.distance


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (weights((3, 4)), weights((4, 3)), "3 x 4 against 4 x 3"),
        (weights((3, 1)), weights((3,)), "3 x 1 against 3"),
        (weights((1,)), weights(()), "1 against scalar"),
        (weights((3,)), np.arange(3), "F32 against I64"),
    ],
)
def test_what_cannot_be_compared_says_why(session, before, after, reason):
    create_model(session, "a", {}, {"w": before})
    create_model(session, "b", {}, {"w": after})
    comparison = compare_models(session, "a", "b", values=True)
    assert comparison.distances == []
    assert [each.reason for each in comparison.differences] == [reason]


@pytest.mark.parametrize("scheme", ["int8", "fp8", "nf4"])
def test_codes_are_not_taken_for_numbers(session, tmp_path, scheme):
    model = import_model(session, write_folder(bert(), tmp_path / "bert"), name="m")
    quantized = quantize_model(session, model, scheme)
    comparison = compare_models(session, model, quantized, values=True)
    codes = [each.name for each in comparison.differences if each.change != "added"]
    assert {each.reason for each in comparison.differences if each.name in codes} == {"codes of a quantised tensor"}
    assert not {each.name for each in comparison.distances} & set(codes)
    assert not any(each.changed for each in comparison.layers.values())


def test_codes_that_are_equal_weigh_nothing(session):
    codes = {"l.weight": np.full((4, 4), 100, np.int8), "l.weight_scale": np.ones(4, np.float32)}
    create_model(session, "a", {}, codes | {"l.bias": np.ones(4, np.float32)})
    create_model(session, "b", {}, codes | {"l.bias": np.full(4, 2, np.float32)})
    comparison = compare_models(session, "a", "b", values=True)
    assert {each.name: each.distance.changed for each in comparison.distances} == {
        "l.weight": 0, "l.weight_scale": 0, "l.bias": 4,
    }  # fmt: skip
    assert sum(each.before for each in comparison.layers.values()) == pytest.approx(8)


def test_layers_add_up_their_floats(session):
    ids = np.arange(500)
    same = np.ones(5, np.float32)
    create_model(session, "a", {}, {"l.w": np.ones(4, np.float32), "l.v": same, "l.ids": ids})
    create_model(session, "b", {}, {"l.w": np.full(4, 2, np.float32), "l.v": same, "l.ids": ids + 1})
    comparison = compare_models(session, "a", "b", values=True)
    (layer,) = comparison.layers.values()
    assert (layer.l2, layer.relative_l2, layer.count) == (pytest.approx(2), pytest.approx(2 / 3), 9)
    assert "l.ids" in {each.name for each in comparison.distances}

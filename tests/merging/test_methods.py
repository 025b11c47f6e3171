from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from arc_halo.errors import MergeError
from arc_halo.merging import METHODS, drawn_mask, given_mask, method
from arc_halo.merging.selection import Ranks, find_between
from tests.merging.arrays import merge

numbers = st.floats(-4, 4, width=32)
weights = st.floats(-2, 2).map(lambda each: round(each, 2))
densities = st.floats(0, 1)


@st.composite
def tensors(draw, least=2, most=4):
    shape = draw(npst.array_shapes(max_dims=2, max_side=12))
    count = draw(st.integers(least, most))
    return [draw(npst.arrays(np.float32, shape, elements=numbers)) for _ in range(count)]


def deltas(arrays):
    return [each.astype(np.float64) - arrays[0] for each in arrays[1:]]


def largest(delta, first, stop):
    """Of a sorted tensor the ranks from first to stop, the rest zero: what a sort says."""
    order = np.argsort(np.abs(delta.astype(np.float32)).reshape(-1), kind="stable")
    kept = np.zeros(delta.size, np.bool_)
    kept[order[first:stop]] = True
    return np.where(kept.reshape(delta.shape), delta, 0)


def elected_mean(vectors, given_weights, *, is_mean):
    weighted = np.stack([vector * weight for vector, weight in zip(vectors, given_weights, strict=True)])
    # In float32, as it is computed: a sum that is 0 by rounding has a sign of its own in float64.
    sign = np.where(sum(weighted.astype(np.float32)) >= 0, 1, -1)
    agrees = np.sign(weighted) == sign
    shape = (-1,) + (1,) * (weighted.ndim - 1)
    divisor = (agrees * np.reshape(given_weights, shape)).sum(axis=0)
    mixed = np.where(agrees, weighted, 0).sum(axis=0)
    return mixed / np.where(np.abs(divisor) < 1e-6, 1, divisor) if is_mean else mixed


@given(tensors(1), st.data())
def test_linear_is_the_weighted_mean(arrays, data):
    chosen = [data.draw(st.floats(0.125, 2)) for _ in arrays]
    wanted = np.average([each.astype(np.float64) for each in arrays], axis=0, weights=chosen)
    assert np.allclose(merge("linear", arrays, {"weight": chosen}), wanted, atol=1e-5)
    total = merge("linear", arrays, {"weight": chosen, "normalize": False})
    assert np.allclose(total, wanted * sum(chosen), atol=1e-5)


def test_weights_that_add_up_to_nothing_have_no_mean():
    with pytest.raises(MergeError, match="add up to 0"):
        merge("linear", [np.ones(3, np.float32)] * 2, {"weight": [1, -1]})


@given(tensors(2, 2), st.floats(0, 1))
def test_slerp_begins_at_the_base_and_ends_at_the_other(arrays, t):
    assert np.allclose(merge("slerp", arrays, {"t": 0.0}), arrays[0], atol=1e-6)
    assert np.allclose(merge("slerp", arrays, {"t": 1.0}), arrays[1], atol=1e-6)
    turned = merge("slerp", arrays[::-1], {"t": 1 - t})
    assert np.allclose(merge("slerp", arrays, {"t": t}), turned, atol=1e-4)


@given(st.floats(0.1, 3.0), st.floats(0, 1))
def test_slerp_keeps_the_norm(angle, t):
    one, other = np.array([1, 0], np.float32), np.array([np.cos(angle), np.sin(angle)], np.float32)
    found = merge("slerp", [one, other], {"t": t})
    if abs(np.cos(angle)) < 0.9995:
        assert np.isclose(np.linalg.norm(found), 1, atol=1e-5)
        assert np.isclose(np.arccos(np.clip(found[0], -1, 1)), t * angle, atol=2e-3)


@given(tensors(), st.data())
def test_task_arithmetic_adds_vectors(arrays, data):
    chosen = [data.draw(weights) for _ in arrays[1:]]
    wanted = arrays[0] + 0.5 * sum(vector * weight for vector, weight in zip(deltas(arrays), chosen, strict=True))
    assert np.allclose(merge("task_arithmetic", arrays, {"weight": chosen, "lambda": 0.5}), wanted, atol=1e-4)


@given(tensors(), st.data())
def test_ties_trims_elects_and_averages(arrays, data):
    chosen = [data.draw(st.floats(0.125, 2, width=16)) for _ in arrays[1:]]
    kept = [data.draw(densities) for _ in arrays[1:]]
    size = arrays[0].size
    single = [each - arrays[0] for each in arrays[1:]]
    counts = [max(1, int(density * size)) if density else 0 for density in kept]
    trimmed = [
        vector if density == 1 else largest(vector, size - count, size)
        for vector, density, count in zip(single, kept, counts, strict=True)
    ]
    wanted = arrays[0] + elected_mean(trimmed, chosen, is_mean=True)
    assert np.allclose(merge("ties", arrays, {"weight": chosen, "density": kept}), wanted, atol=1e-4)


@given(tensors(2, 2), densities, st.floats(0, 1), st.integers(1, 9))
def test_breadcrumbs_keeps_the_middle(arrays, density, gamma, block):
    size, (vector,) = arrays[0].size, [each - arrays[0] for each in arrays[1:]]
    kept = int(density * size)
    first = max(0, size - kept - int(gamma * size))
    wanted = arrays[0] + (vector if density == 1 else largest(vector, first, first + kept))
    said = {"weight": 1.0, "density": density, "gamma": gamma}
    assert np.allclose(merge("breadcrumbs", arrays, said, block=block), wanted, atol=1e-6)


@given(npst.arrays(np.float32, st.integers(1, 60), elements=st.floats(width=32)), st.data(), st.integers(1, 9))
def test_ranks_are_those_of_a_sort(array, data, block):
    first = data.draw(st.integers(0, array.size))
    stop = data.draw(st.integers(first, array.size))

    def blocks():
        return ([array[start : start + block]] for start in range(0, array.size, block))

    (between,) = find_between(blocks, [Ranks(first, stop)])
    keep = between.begin()
    kept = np.concatenate([keep(each) for (each,) in blocks()])
    order = np.argsort(np.abs(array).view(np.uint32), kind="stable")
    assert sorted(np.flatnonzero(kept)) == sorted(order[first:stop])


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("rescale", [True, False])
def test_dare_keeps_what_the_mask_says(name, rescale):
    rng = np.random.default_rng(0)
    base, one = rng.standard_normal((2, 5, 7)).astype(np.float32)
    mask = rng.random((5, 7)) < 0.5
    found = merge(name, [base, one], {"weight": 1.0, "density": 0.5, "rescale": rescale}, masks=[given_mask(mask)])
    vector = one - base
    left = np.where(mask, vector, 0)
    scale = np.abs(vector).sum() / np.abs(left).sum() if rescale else 1
    assert np.allclose(found, base + left * scale, atol=1e-6)


def test_dare_wants_a_mask_for_each_model():
    with pytest.raises(MergeError, match="a mask for each of 1 models, not 0"):
        merge("dare_ties", [np.ones(3, np.float32)] * 2, {"weight": 1.0})


@given(st.integers(0, 2**63), densities, st.lists(st.integers(0, 50), max_size=9))
def test_a_drawn_mask_is_the_same_however_it_is_cut(seed, density, cuts):
    begin = drawn_mask(seed, 0, "w", density)
    whole = begin()(sum(cuts))
    following = begin()
    assert np.array_equal(np.concatenate([np.empty(0, np.bool_), *(following(each) for each in cuts)]), whole)


def test_a_drawn_mask_has_its_density_and_its_own_numbers():
    whole = drawn_mask(1, 0, "w", 0.3)()(200_000)
    assert abs(whole.mean() - 0.3) < 0.005
    for other in (drawn_mask(2, 0, "w", 0.3), drawn_mask(1, 1, "w", 0.3), drawn_mask(1, 0, "v", 0.3)):
        assert abs((other()(200_000) == whole).mean() - 0.58) < 0.01
    assert np.flatnonzero(whole[:40]).tolist() == FIRST_KEPT
    assert drawn_mask(1, 0, "w", 1.0)()(99).all()
    assert not drawn_mask(1, 0, "w", 0.0)()(99).any()


FIRST_KEPT = [1, 3, 6, 8, 10, 11, 14, 17, 19, 20, 25, 26, 27, 31, 33, 34, 35, 36, 37]  # for ever


@pytest.mark.parametrize("name", [each for each in METHODS if method(each).keeps_equal])
def test_what_is_equal_stays_to_the_bit(name):
    array = np.random.default_rng(0).standard_normal(999).astype(np.float32)
    masks = [drawn_mask(0, index, "w", 0.5) for index in range(2)]
    found = merge(name, [array] * 3, {"weight": [0.3, 0.6], "density": 0.5}, masks=masks, block=100)
    assert np.array_equal(found, array)


def test_an_unknown_method_is_told_what_there_is():
    with pytest.raises(MergeError, match="'frankenmerge' is not known; there are linear, slerp"):
        method("frankenmerge")

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from arc_halo.errors import ConfigurationError, TensorError
from arc_halo.quantization.sparsity import (
    Energy,
    Mask,
    Pattern,
    check_sparsity,
    find_threshold,
    prune_smallest,
    share,
    smallest,
)
from tests.fixtures.tensors import same, weights

shares = st.floats(0.01, 0.99)
any_floats = npst.arrays(
    st.sampled_from([np.float16, np.float32, np.float64]),
    npst.array_shapes(min_dims=0, max_side=20),
    elements=st.floats(width=16),
)


def zeros(array):
    return array.size - np.count_nonzero(array)


@given(any_floats, shares)
def test_the_smallest_become_zero_exactly_as_many_as_asked(array, sparsity):
    pruned = prune_smallest(array, sparsity)
    count = share(sparsity, array.size)
    assert (pruned.dtype, pruned.shape) == (array.dtype, array.shape)
    assert zeros(pruned) == max(count, zeros(array))
    magnitudes = np.where(np.isnan(array), np.inf, np.abs(array)).reshape(-1)
    is_pruned = (pruned == 0).reshape(-1)
    assert magnitudes[is_pruned].max(initial=0) <= magnitudes[~is_pruned].min(initial=np.inf)
    kept = ~is_pruned
    assert same(pruned.reshape(-1)[kept], array.reshape(-1)[kept])


@given(npst.arrays(np.float32, 60, elements=st.sampled_from([0.5, -0.5, 1.0])), shares, st.sampled_from([1, 7, 60]))
def test_of_equal_numbers_the_first_are_pruned_however_they_are_cut(array, sparsity, size):
    blocks = np.split(array, range(size, 60, size))
    threshold = find_threshold(lambda: blocks, share(sparsity, 60))
    assert same(np.concatenate([threshold.prune(block) for block in blocks]), prune_smallest(array, sparsity))
    assert threshold.ties == 0


def test_a_threshold_over_several_tensors_takes_from_the_small_one():
    small, large = weights((30, 30), 1), weights((30, 30), 2) * 50
    threshold = find_threshold(lambda: [small, large], 800)
    pruned = [zeros(threshold.prune(each)) for each in (small, large)]
    assert sum(pruned) == 800
    assert pruned[0] > 700


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_types_of_floats(dtype):
    assert zeros(prune_smallest(weights((50, 50), dtype=dtype), 0.5)) == 1250


@pytest.mark.parametrize("array", [np.float32(3), np.empty((0, 4), np.float32), np.zeros((4, 4), np.float32)])
def test_little_or_nothing(array):
    assert same(prune_smallest(np.asarray(array), 0.4), np.asarray(array))


def test_what_is_not_finite_is_never_the_smallest():
    array = np.array([np.nan, -np.inf, 1e300, 1, -2, 3])
    assert prune_smallest(array, 0.5).tolist()[1:] == [-np.inf, 1e300, 0, 0, 0]


@pytest.mark.parametrize("sparsity", [-0.1, 0, 1, 1.5, float("nan")])
def test_a_sparsity_is_between_nothing_and_all(sparsity):
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        prune_smallest(weights((2, 2)), sparsity)


@given(npst.arrays(np.float32, st.tuples(st.integers(0, 9), st.just(8)), elements=st.floats(-1, 1, width=32)))
def test_two_of_four_stay_and_they_are_the_largest(array):
    pruned = Pattern.of("2:4").prune(array)
    groups, kept = np.abs(array).reshape(-1, 4), pruned.reshape(-1, 4) != 0
    assert (kept.sum(axis=1) <= 2).all()
    np.testing.assert_array_equal(np.abs(pruned).reshape(-1, 4).sum(axis=1), np.sort(groups)[:, 2:].sum(axis=1))
    assert same(pruned[pruned != 0], array[pruned != 0])


def test_of_equal_numbers_in_a_group_the_first_are_pruned():
    assert Pattern.of("1:3").prune(np.ones((2, 3), np.float16)).tolist() == [[0, 0, 1]] * 2


@pytest.mark.parametrize("text", ["", "4:4", "0:4", "5:4", "2:4:8", "a:b", "2:400", "-1:4", "row"])
def test_what_is_no_pattern(text):
    with pytest.raises(ConfigurationError, match="write one as 2:4"):
        Pattern.of(text)


@pytest.mark.parametrize("shape", [(), (3,), (4, 6)])
def test_rows_without_whole_groups(shape):
    with pytest.raises(TensorError, match="groups of 4"):
        Pattern.of("2:4").prune(weights(shape))


def test_energy_is_the_sum_of_squares_of_rows_and_columns():
    array = weights((10, 6))
    energy = Energy(10, 6)
    for first in range(0, 10, 4):
        energy.add(array[first : first + 4], first)
    np.testing.assert_allclose(energy.rows, np.square(array.astype(float)).sum(axis=1))
    np.testing.assert_allclose(energy.columns, np.square(array.astype(float)).sum(axis=0))
    assert energy.within(1, 2, 4) == pytest.approx(np.linalg.norm(array[:, 2:4].astype(float)) ** 2)


def test_a_row_with_nan_has_the_most_energy():
    energy = Energy(2, 2)
    energy.add(np.array([[np.nan, 0], [1e300, 1]]), 0)
    assert energy.rows.tolist() == [np.inf, np.inf]
    assert energy.columns.tolist() == [np.inf, 1]


def test_a_mask_takes_rows_and_columns_out_of_blocks():
    mask = Mask(6, 4)
    mask.add(0, 2, 4)
    mask.add(1, 0, 1)
    array = np.ones((6, 4), np.float32)
    pruned = np.concatenate([mask.prune(array[first : first + 3], first) for first in (0, 3)])
    assert pruned.sum(axis=1).tolist() == [3, 3, 0, 0, 3, 3]
    assert array.all()


def test_the_first_of_equal_scores_are_the_smallest():
    assert smallest(np.array([3.0, 1.0, 1.0, 0.0]), 2).tolist() == [1, 3]


@pytest.mark.parametrize(("sparsity", "meant"), [(50, "0.5"), (2.5, "0.025"), (90.0, "0.9")])
def test_per_cent_is_no_share(sparsity, meant):
    with pytest.raises(ConfigurationError, match=rf"did you mean {meant}\?"):
        check_sparsity(sparsity)


@pytest.mark.parametrize("sparsity", [0, 1, 100, -50, float("nan"), float("inf")])
def test_what_is_no_share_at_all(sparsity):
    with pytest.raises(ConfigurationError, match="give one between 0 and 1"):
        check_sparsity(sparsity)

"""What optimizers remember, taken apart and put together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import CheckpointError
from arc_halo.training.optimizer import (
    Number,
    OptimizerSnapshot,
    hyperparameters,
    merge_groups,
    put_optimizer_together,
    take_optimizer_apart,
)
from tests.fixtures.tensors import NUMPY_DTYPES, random_array
from tests.training.states import spelt

PLAIN = st.one_of(st.booleans(), st.integers(), st.floats(), st.text("ab"), st.none())
SCALARS = st.builds(random_array, st.sampled_from(NUMPY_DTYPES), st.just(()), st.integers(0, 2**32))


@given(st.one_of(PLAIN, SCALARS))
def test_a_number_is_what_it_was_or_none(value):
    number = Number.of(value)
    if number is not None:
        assert spelt(number.restore()) == spelt(value)
        assert isinstance(number.value, float)


@pytest.mark.parametrize("value", [3, True, 0.5, -0.0, np.float32(3), np.asarray(7), np.asarray(1.5, np.float16)])
def test_counts_and_rates_are_numbers(value):
    assert Number.of(value) is not None


@pytest.mark.parametrize("value", ["3", None, [1], np.zeros(1), 2**53 + 1, np.asarray(2**53 + 1), float("nan")])
def test_what_a_double_does_not_keep_is_none(value):
    assert Number.of(value) is None


VALUES = st.one_of(PLAIN, SCALARS, st.lists(PLAIN, max_size=2), st.just(np.arange(3.0)))
NAMES = st.sampled_from(["a", "b.weight", "c.bias"])


@given(st.dictionaries(NAMES, st.dictionaries(st.sampled_from(["step", "exp_avg", "x"]), VALUES)), st.integers(0, 3))
def test_any_states_are_put_together_again(states, cut):
    names = ["a", "b.weight", "c.bias"]
    snapshot = OptimizerSnapshot(states, [{"lr": 0.1, "params": names[:cut]}, {"lr": 0.2, "params": names[cut:]}])
    apart = take_optimizer_apart(snapshot)
    values = [(*key, value) for found in (apart.arrays, apart.numbers) for key, value in found.items()]
    again = put_optimizer_together(apart.groups, values)
    assert spelt(again) == spelt(snapshot)


@pytest.mark.parametrize(
    "group",
    [
        {"lr": 0.1},
        {"params": "ab"},
        {"params": [1]},
        {"params": ["a\0"]},
        {"params": [], 3: 4},
        {"params": [], "$x": 1},
    ],
)
def test_groups_name_their_parameters(group):
    with pytest.raises(CheckpointError, match="group 0"):
        take_optimizer_apart(OptimizerSnapshot({}, [group]))


def test_sql_gets_what_json_has():
    group = {
        "lr": 0.1,
        "betas": (0.9, 0.99),
        "fused": None,
        "nan": float("nan"),
        "t": np.ones(2),
        "ts": [np.ones(2)] * 2,
        "params": ["a"],
    }
    assert hyperparameters(group) == {"lr": 0.1, "betas": [0.9, 0.99], "fused": None}


def test_groups_of_ranks_are_one_in_the_order_of_ranks():
    first = [{"lr": 1, "params": ["a"]}, {"lr": 2, "params": []}, {"other_states": {"a": {}}}]
    second = [{"lr": 9, "params": ["a", "b"]}, {"lr": 2, "params": ["c"]}, {"lr": 3, "params": ["d"]}]
    assert merge_groups([first, second]) == [
        {"lr": 1, "params": ["a", "b"]},
        {"lr": 2, "params": ["c"]},
        {"lr": 3, "params": ["d"]},
        {"other_states": {"a": {}}},
    ]
    assert first[0]["params"] == ["a"]

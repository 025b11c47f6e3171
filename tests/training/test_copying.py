"""A copied state is equal to its original in all that is saved, and shares nothing with it that training changes."""

from collections import Counter, OrderedDict, defaultdict
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given

from arc_halo.errors import CheckpointError
from arc_halo.training.copying import StateCopier
from arc_halo.training.trees import MAX_DEPTH, encode_tree
from tests.training.states import spelt, state
from tests.training.test_trees import TREES
from tests.training.test_trees import spelt as spelt_tree


class Moments(NamedTuple):
    first: np.ndarray
    second: list[int]


def arrays_of(value):
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, dict):
        return [array for each in value.values() for array in arrays_of(each)]
    return [array for each in value for array in arrays_of(each)] if isinstance(value, list | tuple) else []


@given(TREES)
def test_copies_are_what_was_copied(tree):
    copied = StateCopier().copy(tree)
    assert spelt_tree(copied) == spelt_tree(tree)
    for before, after in zip(arrays_of(tree), arrays_of(copied), strict=True):
        assert not np.shares_memory(before, after)


def test_a_state_is_copied_whole():
    original = state()
    copied = StateCopier().copy(original)
    assert spelt(copied) == spelt(original)
    original.weights["block.weight"][:] = 0
    assert copied.weights["block.weight"].any()


def test_containers_keep_their_types_and_orders():
    tree = {"b": OrderedDict(z=1, a=np.ones(2)), "a": Counter("abba"), "m": Moments(np.ones(1), [1])}
    copied = StateCopier().copy(tree)
    assert spelt_tree(copied) == spelt_tree(tree)
    assert list(copied) == ["b", "a", "m"]
    assert type(copied["m"]) is Moments


@pytest.mark.parametrize(
    "tree", [{"a": defaultdict(list)}, {"a": Moments}, [type("Own", (list,), {})()], (type("Own", (tuple,), {})(),)]
)
def test_what_a_save_refuses_a_copy_does_not_hide(tree):
    with pytest.raises(CheckpointError) as directly:
        encode_tree(tree, "extra")
    with pytest.raises(CheckpointError) as copied:
        encode_tree(StateCopier().copy(tree), "extra")
    assert str(copied.value) == str(directly.value)


def test_what_nests_too_deep_or_holds_itself_is_left_to_the_save():
    endless = []
    endless.append(endless)
    with pytest.raises(CheckpointError, match=f"deeper than {MAX_DEPTH}"):
        encode_tree(StateCopier().copy(endless), "extra")


def test_mappings_that_cannot_be_copied_are_dicts():
    array = np.ones(3)
    copied = StateCopier().copy(MappingProxyType({"w": array}))
    assert type(copied) is dict
    assert not np.shares_memory(copied["w"], array)


def test_tied_arrays_stay_tied():
    array = np.arange(6.0)
    copied = StateCopier().copy({"a": array, "b": array, "c": array[:3]})
    assert copied["a"] is copied["b"]
    assert copied["c"] is not copied["a"]


def test_memory_is_used_again_and_given_back():
    copier = StateCopier()
    first = copier.copy({"a": np.ones(1000), "b": np.ones((20, 50)).T})
    assert copier.nbytes == 16_000
    again = copier.copy({"a": np.zeros(1000), "b": np.zeros((20, 50)).T})
    assert again["a"] is first["a"]
    assert again["b"] is first["b"]
    assert not again["b"].any()
    smaller = copier.copy({"a": np.ones(500)})
    assert smaller["a"].shape == (500,)
    assert copier.nbytes == 4000


def test_more_than_a_piece_is_copied_by_threads():
    large = {"a": np.arange(3 << 20, dtype=np.int64), "b": np.arange(2 << 20, dtype=np.int64)[::2]}
    copied = StateCopier().copy(large)
    assert np.array_equal(copied["a"], large["a"])
    assert np.array_equal(copied["b"], large["b"])

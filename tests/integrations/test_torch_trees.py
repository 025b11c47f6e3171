"""Trees with tensors and the standard library's dicts are plain trees and come back."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, deque

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from arc_halo.errors import CheckpointError
from arc_halo.integrations.torch_trees import from_plain, to_plain
from arc_halo.training.trees import decode_tree, encode_tree

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.lists(st.floats(allow_nan=False, width=32), max_size=3).map(torch.tensor)
    | st.integers(-5, 5).map(lambda number: torch.tensor(number, dtype=torch.bfloat16))
)
keys = st.text() | st.sampled_from(["torch.Tensor", "dict", "collections.deque"]) | st.integers()
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)
        | st.dictionaries(keys, st.integers(), max_size=3).map(Counter)
        | st.lists(inner, max_size=3).map(lambda values: deque(values, maxlen=4))
    ),
    max_leaves=10,
)


def told(value):
    """Types and values, where tensors have no truth."""
    if isinstance(value, torch.Tensor):
        return torch.Tensor, value.dtype, value.tolist()
    if isinstance(value, dict):
        return type(value), {key: told(each) for key, each in value.items()}
    if isinstance(value, list | tuple | deque):
        return type(value), getattr(value, "maxlen", None), [told(each) for each in value]
    return type(value), value


@given(trees)
def test_they_come_back_as_they_were(tree):
    encoded, arrays = encode_tree(to_plain(tree, "tree"), "tree")
    stored = json.loads(json.dumps(encoded))
    assert told(from_plain(decode_tree(stored, arrays))) == told(tree)


def test_the_caller_may_change_what_came_back():
    array = np.ones(3, np.float32)
    from_plain({"torch.Tensor": array}).zero_()
    assert array.tolist() == [1, 1, 1]


@pytest.mark.parametrize("value", [len, object(), {1, 2}, 1j], ids=["function", "object", "set", "complex"])
def test_what_is_no_plain_value_is_refused_by_its_place(value):
    with pytest.raises(CheckpointError, match=r"scheduler\['fns'\]\[1\] is a builtins\.\w+, which is no plain"):
        to_plain({"fns": [0, value]}, "scheduler")


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4, 4]),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=20),
        torch.optim.lr_scheduler.ReduceLROnPlateau,
        lambda optimizer: torch.optim.lr_scheduler.CyclicLR(optimizer, 0.1, 1.0, step_size_up=3),
        lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [torch.optim.lr_scheduler.LinearLR(optimizer), torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)],
            [3],
        ),
    ],
)
def test_schedulers_of_torch_come_back(make):
    def steps(optimizer, scheduler, count):
        for _ in range(count):
            optimizer.step()
            scheduler.step(*([1.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
            yield optimizer.param_groups[0]["lr"]

    optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5, momentum=0.9) for _ in range(2)]
    first, second = (make(each) for each in optimizers)
    list(steps(optimizers[0], first, 5))
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    second.load_state_dict(from_plain(to_plain(first.state_dict(), "scheduler")))
    assert list(steps(optimizers[1], second, 8)) == list(steps(optimizers[0], first, 8))

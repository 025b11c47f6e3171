"""Entries of state dicts have one place each, and lead back to where they came from."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.distributed.checkpoint._nested_dict import flatten_state_dict

from arc_halo.integrations.dcp.layout import Hyperparameter, Layout, State, Weight, find_layout

NAMES = st.sampled_from(["0.weight", "0.bias", "blocks.1.norm.weight", "w", "head", "state", "model", "param_groups"])
KEYS = st.sampled_from(
    ["model", "optim", "optimizer", "state", "param_groups", "state.w.exp", "param_groups.w.lr", "a"]
)
LEAVES = st.one_of(st.just(torch.ones(1)), st.integers(), st.lists(st.integers(), max_size=2), st.text(max_size=3))
NESTED = st.recursive(
    LEAVES, lambda inner: st.dictionaries(KEYS | NAMES, inner, max_size=4) | st.lists(inner, max_size=3), max_leaves=20
)


def paths_of(state_dict):
    flat, paths = flatten_state_dict(state_dict)
    tensors = [paths[name] for name, value in flat.items() if torch.is_tensor(value)]
    return tensors, {paths[name]: value for name, value in flat.items() if not torch.is_tensor(value)}


def optimizer(*names, **settings):
    state = {name: {"step": torch.ones(()), "exp_avg": torch.ones(2)} for name in names}
    return {"state": state, "param_groups": [{"params": list(names), "lr": 0.1, **settings}]}


def joined(*names):
    state = {f"state.{name}.exp_avg": torch.ones(2) for name in names}
    return state | {f"param_groups.{name}.lr": 0.1 for name in names}


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(KEYS, NESTED, max_size=5))
def test_any_state_dict_leads_to_places_and_back(state_dict):
    try:
        tensors, values = paths_of(state_dict)
    except ValueError:  # two of its paths have one joined name, which torch refuses
        return
    layout = find_layout(tensors, values)
    found = {path: layout.place(path) for path in (*tensors, *values)}
    placed = {path: place for path, place in found.items() if place is not None}
    assert len(set(placed.values())) == len(placed)
    assert {path: layout.path(place) for path, place in placed.items()} == {path: path for path in placed}


def test_what_get_state_dict_gives():
    state = {"model": {"0.weight": torch.ones(2)}, "optim": optimizer("0.weight"), "epoch": 3, "rng": torch.ones(4)}
    layout = find_layout(*paths_of(state))
    assert layout == Layout(("model",), ("optim",))
    assert layout.place(("model", "0.weight")) == Weight("0.weight")
    assert layout.place(("optim", "state", "0.weight", "exp_avg")) == State("0.weight", "exp_avg")
    assert layout.place(("optim", "param_groups", 0, "lr")) == Hyperparameter(0, "lr")
    assert layout.place(("rng",)) is layout.place(("epoch",)) is None


def test_joined_keys_of_an_optimizer():
    layout = find_layout(*paths_of({"model": {"a.b": torch.ones(2)}, "optim": joined("a.b")}))
    assert layout == Layout(("model",), ("optim",), is_joined=True)
    assert layout.place(("optim", "state.a.b.exp_avg")) == State("a.b", "exp_avg")
    assert layout.place(("optim", "param_groups.a.b.lr")) == Hyperparameter("a.b", "lr")


def test_an_application_that_keeps_both_under_its_own_key():
    layout = find_layout(*paths_of({"app": {"model": {"w": torch.ones(2)}, "optimizer": optimizer("w")}}))
    assert layout == Layout(("app", "model"), ("app", "optimizer"))


def test_a_bare_state_dict_is_weights():
    layout = find_layout(*paths_of({"0.weight": torch.ones(2), "0.bias": torch.ones(2)}))
    assert layout == Layout((), None)


def test_of_several_dicts_the_largest_is_weights():
    state = {
        "step": torch.ones(()),
        "generator": {"a": torch.ones(1), "b": torch.ones(1)},
        "critic": {"c": torch.ones(1)},
    }
    assert find_layout(*paths_of(state)).weights == ("generator",)


def test_of_several_optimizers_the_one_that_is_called_so():
    state = {"critic_optim": optimizer("c"), "optimizer": optimizer("w")}
    assert find_layout(*paths_of(state)).optimizer == ("optimizer",)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_parameters_that_are_counted_have_no_names(make):
    module = torch.nn.Linear(2, 2)
    counting = make(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    counting.step()
    layout = find_layout(*paths_of({"model": module.state_dict(), "optim": counting.state_dict()}))
    assert layout == Layout(("model",), None)

"""Optimizers by name: every kind of state comes back, in whatever order parameters stand."""

from __future__ import annotations

import copy

import pytest
import torch

from arc_halo.errors import StateMismatch
from arc_halo.integrations.torch_training import capture_state, restore_state
from tests.fixtures.torch_optimizers import OPTIMIZERS, module, train


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_each_kind_goes_on_bit_for_bit(make):
    model, other = module(0), module(1)
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    state = copy.deepcopy(capture_state(model, optimizer))
    resumed = make(other.parameters())
    restore_state(state, other, resumed)
    assert train(other, resumed, 5) == train(model, optimizer, 5)


def test_states_and_groups_go_by_name_whatever_their_order():
    model, other = module(0), module(1)
    named = dict(model.named_parameters())
    optimizer = torch.optim.Adam([{"params": [named["0.weight"], named["2.bias"]], "lr": 0.1},
                                  {"params": [named["0.bias"], named["2.weight"]], "lr": 0.2}])  # fmt: skip
    train(model, optimizer, 3)
    state = copy.deepcopy(capture_state(model, optimizer))
    turned = dict(other.named_parameters())
    resumed = torch.optim.Adam([{"params": [turned["2.weight"], turned["0.bias"]]},
                                {"params": [turned["2.bias"], turned["0.weight"]]}])  # fmt: skip
    restore_state(state, other, resumed)
    assert [group["lr"] for group in resumed.param_groups] == [0.2, 0.1]
    assert train(other, resumed, 4) == train(model, optimizer, 4)


class Wide(torch.optim.SGD):
    """Keeps moments wider than its parameters, and things that are no tensors."""

    def step(self, closure):
        loss = closure()
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["mean"] = state.get("mean", torch.zeros_like(parameter, dtype=torch.float32)) + 1 / 3
            state |= {"name": "text", "is_warm": True, "nothing": None, "bounds": [torch.tensor(0.1), 2]}
        self.state["shared"] = {"steps": 3, "scale": torch.tensor(2.5)}
        return loss


def test_states_wider_than_their_parameter_and_of_other_kinds():
    model, other = module(0, dtype=torch.bfloat16), module(1, dtype=torch.bfloat16)
    optimizer, resumed = Wide(model.parameters()), Wide(other.parameters())
    train(model, optimizer, 2)
    restore_state(capture_state(model, optimizer), other, resumed)
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(optimizer.state[left]["mean"], resumed.state[right]["mean"])
        assert resumed.state[right]["mean"].dtype == torch.float32
        assert sorted(map(str, optimizer.state[left].items())) == sorted(map(str, resumed.state[right].items()))
    assert resumed.state["shared"] == {"steps": 3, "scale": torch.tensor(2.5)}


def test_a_parameter_that_the_model_does_not_have_is_refused():
    loose = torch.nn.Parameter(torch.ones(7))
    with pytest.raises(StateMismatch, match=r"group 0 .* has 1 parameters .* shape \(7,\); .*ModuleDict"):
        capture_state(module(0), torch.optim.SGD([loose]))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([["0.weight", "0.bias", "2.weight"]], "1 only in the checkpoint: '2.bias'"),
        ([["0.weight", "0.bias"], ["2.weight", "2.bias"]], "in other groups, of 2, 2 in the place of 4"),
    ],
)
def test_other_groups_are_refused_and_nothing_is_changed(chosen, message):
    model, other = module(0), module(1)
    before = other[0].weight.clone()
    named = dict(other.named_parameters())
    resumed = torch.optim.SGD([{"params": [named[name] for name in group]} for group in chosen])
    with pytest.raises(StateMismatch, match=message):
        restore_state(capture_state(model, torch.optim.SGD(model.parameters())), other, resumed)
    assert torch.equal(other[0].weight, before)

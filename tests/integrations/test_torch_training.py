"""The state of a training loop, taken and put back: it goes on as if nothing had happened."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from arc_halo.errors import CheckpointError, StateMismatch
from arc_halo.integrations.torch_training import capture_state, restore_state
from arc_halo.training.checkpoint import CheckpointState
from arc_halo.training.loading import load_checkpoint
from arc_halo.training.saving import save_checkpoint
from tests.fixtures.small_transformer import Loop, SmallTransformer
from tests.fixtures.torch_optimizers import OPTIMIZERS, module, train
from tests.training.states import begin

KINDS = ["float32", "bfloat16", "amp"]


def leaves(tree, path=""):
    """Every value of a state with its path, arrays as their bytes."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{path}[{index}]")
    else:
        yield path, (tree.dtype, tree.shape, tree.tobytes()) if isinstance(tree, np.ndarray) else tree


def flat(state):
    fields = {name: getattr(state, name) for name in CheckpointState.__dataclass_fields__}
    fields["optimizer"] = {"states": dict(state.optimizer.states), "groups": list(state.optimizer.groups)}
    return dict(leaves(fields))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [0, 1, 13, 20])
def test_a_restored_loop_goes_on_bit_for_bit(kind, cut):
    straight = Loop(kind)
    losses = list(straight.losses(cut))
    state = copy.deepcopy(straight.capture())
    losses += list(straight.losses(20))
    resumed = Loop(kind, seed=99)
    resumed.restore(state)
    assert list(resumed.losses(20)) == losses[cut:]
    assert flat(resumed.capture()) == flat(straight.capture())


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_goes_on_from_the_database(session, kind):
    straight = Loop(kind)
    list(straight.losses(15))
    checkpoint = save_checkpoint(session, begin(session), straight.capture(extra={"best": math.nan}), 15)
    losses = list(straight.losses(10))
    resumed = Loop(kind, seed=99)
    extra = resumed.restore(load_checkpoint(session, checkpoint))
    assert math.isnan(extra["best"])
    assert list(resumed.losses(10)) == losses
    assert flat(resumed.capture()) == flat(straight.capture())


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_each_optimizer_goes_on_from_the_database(session, make):
    model, other = module(0), module(1)
    optimizer, resumed = make(model.parameters()), make(other.parameters())
    train(model, optimizer, 3)
    checkpoint = save_checkpoint(session, begin(session), capture_state(model, optimizer), 3)
    restore_state(load_checkpoint(session, checkpoint), other, resumed)
    assert train(other, resumed, 5) == train(model, optimizer, 5)


def test_a_checkpoint_of_weights_fills_a_module_and_no_optimizer(session):
    loop = Loop()
    checkpoint = save_checkpoint(session, begin(session), loop.capture(), 0, checkpoint_type="weights")
    loaded = load_checkpoint(session, checkpoint)
    other = SmallTransformer()
    restore_state(loaded, other)
    assert torch.equal(other.head.weight, loop.model.embed.weight)
    with pytest.raises(StateMismatch, match="no state of optimizer;"):
        restore_state(loaded, other, loop.optimizer)


def test_a_state_may_be_restored_twice():
    loop = Loop()
    list(loop.losses(5))
    state = copy.deepcopy(loop.capture())
    runs = []
    for _ in range(2):
        loop.restore(state)
        runs.append(list(loop.losses(5)))
    assert runs[0] == runs[1]


def test_capturing_copies_nothing_and_draws_nothing():
    loop = Loop()
    list(loop.losses(3))
    state = loop.capture()
    address = loop.model.embed.weight.data_ptr()
    assert state.weights["embed.weight"].__array_interface__["data"][0] == address
    assert flat(loop.capture()) == flat(state)


def test_tied_weights_are_kept_once_and_other_buffers_not_at_all():
    state = capture_state(SmallTransformer())
    assert {"embed.weight", "scale", "norm.bias"} <= state.weights.keys()
    assert not {"head.weight", "positions"} & state.weights.keys()
    assert state.extra["torch"] == {"aliases": {"head.weight": "embed.weight"}, "frozen": ["norm.bias"]}


def test_what_is_frozen_is_so_again():
    state = capture_state(SmallTransformer())
    model = SmallTransformer()
    for parameter in model.parameters():
        parameter.requires_grad_(not parameter.requires_grad)
    restore_state(state, model)
    assert [name for name, each in model.named_parameters() if not each.requires_grad] == ["norm.bias"]


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrappers_are_looked_through(wrap):
    model = SmallTransformer()
    state = capture_state(wrap(model), torch.optim.SGD(wrap(model).parameters()))
    assert state.weights.keys() == capture_state(model).weights.keys()
    other = SmallTransformer()
    restore_state(state, wrap(other))
    assert torch.equal(other.embed.weight, model.embed.weight)


def test_gradients_between_two_steps_of_accumulation():
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    model(torch.ones(4, 3)).sum().backward()
    model.bias.grad = None
    other.bias.grad = torch.ones(2)
    restore_state(capture_state(model, gradients=True), other)
    assert torch.equal(other.weight.grad, model.weight.grad)
    assert other.bias.grad is None


class Counting(torch.nn.Linear):
    seen = 0

    def get_extra_state(self):
        return {"seen": self.seen, "mean": torch.tensor(0.25)}

    def set_extra_state(self, state):
        self.seen, self.mean = state["seen"], state["mean"]


def test_extra_state_of_modules_and_of_the_caller():
    model, other = torch.nn.Sequential(Counting(2, 2)), torch.nn.Sequential(Counting(2, 2))
    model[0].seen = 7
    state = capture_state(model, extra={"best": (1.5, torch.tensor([True]))})
    extra = restore_state(state, other)
    assert (other[0].seen, other[0].mean) == (7, torch.tensor(0.25))
    assert extra == {"best": (1.5, torch.tensor([True]))}
    with pytest.raises(CheckpointError, match="'torch', which is taken"):
        capture_state(model, extra={"torch": 1})


def test_generators_of_the_caller():
    generator = torch.Generator().manual_seed(3)
    state = capture_state(torch.nn.Linear(1, 1), generators={"noise": generator})
    expected = torch.rand(5, generator=generator)
    other = torch.Generator()
    restore_state(state, torch.nn.Linear(1, 1), generators={"noise": other})
    assert torch.equal(torch.rand(5, generator=other), expected)
    with pytest.raises(StateMismatch, match="no state of the generators 'more', but of 'noise'"):
        restore_state(state, torch.nn.Linear(1, 1), generators={"more": other})


def test_a_component_that_the_checkpoint_lacks_is_asked_for():
    state = capture_state(torch.nn.Linear(1, 1))
    module = torch.nn.Linear(1, 1)
    with pytest.raises(StateMismatch, match="no state of optimizer and scaler; leave out"):
        restore_state(state, module, torch.optim.SGD(module.parameters()), scaler=torch.amp.GradScaler("cpu"))


def test_a_loader_without_a_position_is_refused():
    loader = torch.utils.data.DataLoader([1, 2])
    with pytest.raises(CheckpointError, match=r"DataLoader without state_dict.*ResumableLoader"):
        capture_state(torch.nn.Linear(1, 1), data_loader=loader)


def changed(model, change):
    change(model)
    return model


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (SmallTransformer(layers=3), r"12 names are in the module and not.*'blocks\.2\.linear1\.bias'.* and 9 more"),
        (SmallTransformer(layers=1), r"12 names are in the checkpoint and not in the module: 'blocks\.1\."),
        (torch.nn.ModuleDict({"lm": SmallTransformer()}), r"the module's names begin with 'lm\.': give the part"),
        (SmallTransformer().half(), r"\d+ of another type: 'blocks.*' is float32 there, float16 here"),
        (
            changed(SmallTransformer(), lambda model: setattr(model, "norm", torch.nn.LayerNorm((1, 32)))),
            r"2 of another shape: 'norm\.bias' is \(32,\) there, \(1, 32\) here",
        ),
        (
            changed(SmallTransformer(), lambda model: setattr(model, "head", torch.nn.Linear(32, 64, bias=False))),
            r"ties differ: 'head\.weight' = 'embed\.weight' there, none here",
        ),
    ],
    ids=["more", "fewer", "inside", "type", "shape", "untied"],
)
def test_another_module_is_refused_with_what_is_different(other, message):
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    state = capture_state(SmallTransformer())
    with pytest.raises(StateMismatch, match=message):
        restore_state(state, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_what_agrees_is_filled_when_that_is_asked_for():
    model, other = SmallTransformer(), SmallTransformer(layers=3).bfloat16()
    restore_state(capture_state(model), other, strict=False)
    assert torch.equal(other.blocks[1].linear1.weight, model.blocks[1].linear1.weight.bfloat16())


def test_a_checkpoint_that_knows_no_ties_follows_the_module():
    model, other = SmallTransformer(), SmallTransformer()
    weights = capture_state(model).weights
    weights["head.weight"] = weights.pop("embed.weight")
    restore_state(CheckpointState(weights=weights), other)
    assert torch.equal(other.embed.weight, model.embed.weight)

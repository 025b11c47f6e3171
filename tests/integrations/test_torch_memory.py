"""Memory of activations: counted as it is, planned by the least time, and saved where the plan says so."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from sqlalchemy import select

from arc_halo.errors import ConfigurationError, StateMismatch
from arc_halo.integrations.torch_memory import (
    STRATEGIES,
    measure_gradient_checkpointing,
    record_gradient_checkpoints,
    strategies_applied,
)
from arc_halo.integrations.torch_memory.live import LiveBytes
from arc_halo.integrations.torch_memory.planning import Cost, choose_strategies
from arc_halo.registry import create_model
from arc_halo.schema import GradientCheckpoint, TransformerLayer
from tests.fixtures.models import llama
from tests.schema.rows import add_run

WIDTH, BATCH = 32, 50


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Block(torch.nn.Module):
    """Keeps what can be counted by hand: dropout and a buffer that changes with every call."""

    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(WIDTH, 8 * WIDTH), torch.nn.Linear(8 * WIDTH, WIDTH)
        self.norm = torch.nn.BatchNorm1d(WIDTH)

    def forward(self, given):
        return given + self.norm(self.down(torch.nn.functional.dropout(self.up(given).square(), 0.1)))


class Stack(torch.nn.Module):
    def __init__(self, layers=6):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(WIDTH, WIDTH)
        self.layers = torch.nn.ModuleList(Block() for _ in range(layers))

    def forward(self, given):
        hidden = self.first(given)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden.square().mean()


def step(model):
    return lambda: model(torch.linspace(-1, 1, BATCH * WIDTH).reshape(BATCH, WIDTH))


def peak(model, strategies):
    model.zero_grad(set_to_none=False)
    with strategies_applied(model, strategies), LiveBytes() as live:
        step(model)().backward()
    return live.peak_nbytes


def gradients(model, strategies):
    model.zero_grad()
    torch.manual_seed(7)
    with strategies_applied(model, strategies):
        step(model)().backward()
    return {name: each.grad.clone() for name, each in model.named_parameters()}


def test_bytes_are_those_of_the_tensors_alive():
    weight = torch.randn(100, 100)
    with LiveBytes() as live:
        first = weight @ weight
        _view = first[:10]
        assert live.nbytes == 40_000
        second = first + weight.add_(1)
        assert (live.nbytes, live.peak_nbytes) == (80_000, 80_000)
        del first, _view
        assert (live.nbytes, live.peak_nbytes) == (40_000, 80_000)
    del second
    assert live.nbytes == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_are_equal_under_each_strategy(strategy):
    model = Stack()
    names = [f"layers.{index}" for index in range(6)]
    model.layers[0].norm.momentum = 0.0  # running means move with each call, and are not what is compared
    plain = gradients(model, {})
    other = gradients(model, dict.fromkeys(names, strategy))
    assert all(torch.equal(plain[name], other[name]) for name in plain)
    assert all("forward" not in vars(layer) for layer in model.layers)


@pytest.mark.parametrize("share", [1.0, 0.75, 0.5, 0.35])
def test_the_recommendation_stays_within_the_budget_and_changes_no_gradient(share):
    model = Stack()
    budget = int(peak(model, {}) * share)
    plan = measure_gradient_checkpointing(model, step(model), budget_nbytes=budget, repeats=1)
    assert plan.fits
    assert peak(model, plan.strategies) == plan.planned_peak_nbytes <= budget
    assert (set(plan.strategies.values()) == {"none"}) == (share == 1.0)
    plain, planned = gradients(model, {}), gradients(model, plan.strategies)
    assert all(torch.equal(plain[name], planned[name]) for name in plain)


def test_figures_of_a_layer_are_those_that_can_be_counted():
    model = Stack(2)
    plan = measure_gradient_checkpointing(model, step(model), budget_nbytes=1 << 30, repeats=1)
    costs = plan.layers[1].costs
    row, wide = BATCH * WIDTH * 4, BATCH * 8 * WIDTH * 4
    # Input; what is squared, the mask of dropout and what it gives; what the norm is given, its mean and deviation.
    assert plan.layers[1].activation_nbytes == row + 3 * wide + row + 2 * WIDTH * 4
    assert costs["full"].kept_nbytes == row
    assert costs["selective"].kept_nbytes == row + wide + row
    assert costs["full"].recompute_seconds > 0
    assert "offload" not in costs


def test_a_budget_below_everything_gives_the_smallest_plan():
    model = Stack()
    plan = measure_gradient_checkpointing(model, step(model), budget_nbytes=1, repeats=1)
    assert not plan.fits
    assert plan.strategies["layers.0"] == "full"
    assert plan.planned_peak_nbytes < plan.peak_nbytes / 2


def test_nothing_is_changed_by_measuring():
    model = Stack()
    step(model)().backward()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    grads = {name: each.grad.clone() for name, each in model.named_parameters()}
    random = torch.get_rng_state()
    measure_gradient_checkpointing(model, step(model), budget_nbytes=1, repeats=2)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(torch.equal(each.grad, grads[name]) for name, each in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["layers.9"], "no module 'layers.9'; it has first, layers"),
        ([], "name at least one"),
        (["layers"], "does not run through 'layers'"),
    ],
)
def test_layers_that_are_none_are_refused(layers, message):
    model = Stack()
    with pytest.raises(ConfigurationError, match=message):
        measure_gradient_checkpointing(model, step(model), budget_nbytes=1, layers=layers)


def test_a_model_without_a_list_of_layers_asks_for_names():
    with pytest.raises(ConfigurationError, match="no ModuleList"):
        measure_gradient_checkpointing(torch.nn.Linear(1, 1), lambda: None, budget_nbytes=1)


sizes = st.integers(0, 40)
costs = st.lists(
    st.dictionaries(st.sampled_from(STRATEGIES), st.builds(Cost, sizes, sizes, st.integers(0, 9)), min_size=1),
    max_size=4,
)


def cheapest(costs, budget, base, head):
    """By trying every combination: seconds of the best that fits, and the smallest peak of all."""
    fitting, peaks = [], []
    for chosen in itertools.product(*(each.values() for each in costs)):
        kept = list(itertools.accumulate((each.kept_nbytes for each in chosen), initial=0))
        extra = [before + each.extra_nbytes for before, each in zip(kept[1:], chosen, strict=True)]
        peaks.append(base + max([kept[-1] + head, *extra]))
        if peaks[-1] <= budget:
            fitting.append(sum(each.recompute_seconds for each in chosen))
    return min(fitting, default=None), min(peaks)


@settings(max_examples=200, deadline=None)
@given(costs, st.integers(0, 150), sizes, sizes)
def test_no_other_plan_takes_less_time_within_the_budget(costs, budget, base, head):
    seconds, smallest = cheapest(costs, budget, base, head)
    choice = choose_strategies(dict(enumerate(costs)), budget, base_nbytes=base, head_nbytes=head)
    assert choice.fits == (seconds is not None)
    if choice.fits:
        assert choice.seconds == seconds
        assert choice.nbytes <= budget
    else:
        assert choice.nbytes == smallest


def test_a_plan_is_kept_with_its_run(session):
    made = llama()
    model = create_model(session, "m", made.config, made.arrays(0))
    run = add_run(session, model)
    module = torch.nn.ModuleDict({"model": Stack(2)})
    layers = [f"model.layers.{index}" for index in range(2)]
    plan = measure_gradient_checkpointing(module, step(module["model"]), budget_nbytes=1, layers=layers, repeats=1)
    for _again in range(2):
        rows = record_gradient_checkpoints(session, run, plan)
    assert [row.strategy for row in rows] == [*plan.strategies.values()] == ["full", "none"]
    found = session.execute(
        select(TransformerLayer.path, GradientCheckpoint).join(GradientCheckpoint.layer).order_by(TransformerLayer.path)
    ).all()
    assert [path for path, _ in found] == ["model.layers.0", "model.layers.1"]
    assert found[0][1].activation_nbytes > found[0][1].kept_nbytes == BATCH * WIDTH * 4
    assert found[0][1].measured_at is not None


def test_a_plan_of_another_model_is_refused(session):
    made = llama()
    run = add_run(session, create_model(session, "m", made.config, made.arrays(0)))
    model = Stack()
    plan = measure_gradient_checkpointing(model, step(model), budget_nbytes=1, layers=["first"], repeats=1)
    with pytest.raises(StateMismatch, match="no layer 'first', but 'model"):
        record_gradient_checkpoints(session, run, plan)

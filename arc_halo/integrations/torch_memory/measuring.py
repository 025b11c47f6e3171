"""What the activations of each layer cost in memory and time, and which of them to compute again."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from arc_halo.errors import ConfigurationError, StateMismatch
from arc_halo.integrations.torch_memory.layers import measure_layers, record_calls
from arc_halo.integrations.torch_memory.live import LiveBytes
from arc_halo.integrations.torch_memory.planning import Choice, Cost, choose_strategies
from arc_halo.integrations.torch_memory.strategies import find_layer, strategies_applied
from arc_halo.integrations.torch_training.rng import capture_rng, restore_rng
from arc_halo.schema import GradientCheckpoint, TrainingSession, TransformerLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.integrations.torch_memory.strategies import Strategy

_ROUNDS: Final = 4


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """What was measured of a layer.

    Attributes
    ----------
    activation_nbytes
        What it keeps without checkpointing, its input included.
    costs
        By strategy, among those that make sense on the device.
    strategy
        The recommended one.
    """

    name: str
    activation_nbytes: int
    costs: dict[Strategy, Cost]
    strategy: Strategy

    @property
    def cost(self) -> Cost:
        """Of the recommended strategy."""
        return self.costs[self.strategy]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """A recommendation for every layer, and the peak of a step that was measured without and with it.

    Attributes
    ----------
    peak_nbytes, planned_peak_nbytes
        Of one step, forwards and backwards, without and with the recommendation; parameters, their gradients and the
        optimizer's states are not in it.
    fits
        Whether the second is within the budget; if not, the recommendation is the smallest there is.
    """

    layers: tuple[LayerMemory, ...]
    budget_nbytes: int
    peak_nbytes: int
    planned_peak_nbytes: int

    @property
    def fits(self) -> bool:
        """Whether the recommendation keeps a step within the budget."""
        return self.planned_peak_nbytes <= self.budget_nbytes

    @property
    def strategies(self) -> dict[str, Strategy]:
        """By layer, as `strategies_applied` takes them."""
        return {layer.name: layer.strategy for layer in self.layers}


def measure_gradient_checkpointing(
    model: torch.nn.Module,
    compute_loss: Callable[[], torch.Tensor],
    *,
    budget_nbytes: int,
    layers: Sequence[str] | None = None,
    repeats: int = 3,
) -> MemoryPlan:
    """Measure what each layer's activations take, and recommend how to keep them within a budget.

    Each layer is run alone, forwards and backwards, on what it is given in a step: without checkpointing, with
    ``full`` (nothing kept but its input), ``selective`` (products of matrices and attention kept) and, on an
    accelerator, ``offload`` (kept in the host's memory). The recommendation is then applied and a whole step measured;
    where that is above the budget, a smaller one is sought. Weights, gradients, buffers and random states are as before
    when it is done.

    Parameters
    ----------
    compute_loss
        One forward pass of ``model`` to a scalar, such as ``lambda: model(**batch).loss``.
    budget_nbytes
        What a step may take for activations and what else lives between its operators, without parameters, their
        gradients and the optimizer.
    layers
        Names of modules; by default the elements of the longest ``ModuleList``.
    repeats
        How often each is timed; the shortest counts.

    Raises
    ------
    ConfigurationError
        There are no such layers, or the step does not run through one of them.

    Examples
    --------
    >>> plan = measure_gradient_checkpointing(model, lambda: model(**batch).loss, budget_nbytes=2 << 30)
    ... # doctest: +SKIP
    >>> with strategies_applied(model, plan.strategies):  # doctest: +SKIP
    ...     train(model)
    """
    step = _Step(model, compute_loss, tuple(_blocks(model) if layers is None else layers))
    with _untouched(model):
        calls = record_calls(model, compute_loss, step.names)
        costs = measure_layers(calls, repeats)
        peak, behind_layers = step.measure()
        kept = sum(each["none"].kept_nbytes for each in costs.values())
        choice, planned = _recommend(step, costs, budget_nbytes, behind_layers - kept, peak - behind_layers)
    measured = [
        LayerMemory(name, costs[name]["none"].kept_nbytes, costs[name], choice.strategies[name]) for name in costs
    ]
    return MemoryPlan(tuple(measured), budget_nbytes, peak, planned)


@dataclass(frozen=True, slots=True)
class _Step:
    """A step of training without the optimizer's."""

    model: torch.nn.Module
    compute_loss: Callable[[], torch.Tensor]
    names: tuple[str, ...]

    def measure(self) -> tuple[int, int]:
        """The peak, and what is alive when the last of the layers has run forwards."""
        after = 0
        with LiveBytes() as live:

            def note(*_: Any) -> None:
                nonlocal after
                after = live.nbytes

            handles = [find_layer(self.model, name).register_forward_hook(note) for name in self.names]
            try:
                self.compute_loss().backward()
            finally:
                for handle in handles:
                    handle.remove()
        return live.peak_nbytes, after


def record_gradient_checkpoints(
    session: Session, training_session: TrainingSession | uuid.UUID, plan: MemoryPlan
) -> list[GradientCheckpoint]:
    """Keep a plan with the run it is for, a row for each layer; an earlier plan for them is replaced.

    Layers are found by their names; a prefix that either side has more, as ``model.``, does not matter.

    Raises
    ------
    StateMismatch
        The run's model has no such layer.
    """
    run_id = training_session if isinstance(training_session, uuid.UUID) else training_session.id
    paths = select(TransformerLayer.path, TransformerLayer.id).join(
        TrainingSession, TrainingSession.model_id == TransformerLayer.model_id
    )
    found = session.execute(paths.where(TrainingSession.id == run_id).order_by(TransformerLayer.position))
    ids = {path: layer_id for path, layer_id in found}  # noqa: C416  (dict() of rows has no type)
    rows = [
        {
            "training_session_id": run_id,
            "layer_id": _layer_id(layer.name, ids),
            "strategy": layer.strategy,
            "recompute_seconds": layer.cost.recompute_seconds,
            "activation_nbytes": layer.activation_nbytes,
            "kept_nbytes": layer.cost.kept_nbytes,
            "peak_memory_nbytes": layer.cost.kept_nbytes + layer.cost.extra_nbytes,
            "measured_at": func.now(),
        }
        for layer in plan.layers
    ]
    statement = insert(GradientCheckpoint).values(rows)
    key = ["training_session_id", "layer_id"]
    changed = {column: statement.excluded[column] for column in rows[0] if column not in key}
    upsert = statement.on_conflict_do_update(index_elements=key, set_=changed).returning(GradientCheckpoint)
    return list(session.scalars(upsert, execution_options={"populate_existing": True}))


def _layer_id(name: str, ids: Mapping[str, uuid.UUID]) -> uuid.UUID:
    for path, layer_id in ids.items():
        if f".{path}".endswith(f".{name}") or f".{name}".endswith(f".{path}"):
            return layer_id
    raise StateMismatch(
        f"the run's model has no layer {name!r}, but {', '.join(map(repr, [*ids][:3])) or 'none'}; give the run of the "
        "model that was measured"
    )


def _blocks(model: torch.nn.Module) -> list[str]:
    lists = {name: each for name, each in model.named_modules() if isinstance(each, torch.nn.ModuleList)}
    if not lists:
        raise ConfigurationError("the model has no ModuleList whose elements could be its layers; name them in layers=")
    longest = max(lists, key=lambda name: len(lists[name]))
    return [f"{longest}.{index}" for index in range(len(lists[longest]))]


def _recommend(
    step: _Step, costs: Mapping[str, Mapping[Strategy, Cost]], budget: int, base: int, head: int
) -> tuple[Choice, int]:
    """A choice whose peak was measured: a sum of single layers is an estimate."""
    aim = budget
    for _ in range(_ROUNDS):
        choice = choose_strategies(costs, aim, base_nbytes=base, head_nbytes=head)
        with strategies_applied(step.model, choice.strategies):
            planned, _behind_layers = step.measure()
        if planned <= budget or not choice.fits:
            break
        aim -= planned - budget
    return choice, planned


@contextmanager
def _untouched(model: torch.nn.Module) -> Iterator[None]:
    """Random states, buffers and gradients come back; in between gradients are there, as in the midst of training."""
    random = capture_rng()
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    gradients = {each: each.grad for each in model.parameters()}
    for parameter in gradients:
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    try:
        yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        with torch.no_grad():
            for name, each in model.named_buffers():
                each.copy_(buffers[name])
        restore_rng(random)

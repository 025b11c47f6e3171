"""Which layers should compute activations again: the least time that fits into a memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from arc_halo.integrations.torch_memory.strategies import Strategy

_UNITS: Final = 2000
"""Parts of the budget that sizes are rounded up to, so that a plan takes no more than it says."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a strategy costs a layer.

    Attributes
    ----------
    kept_nbytes
        Held from the layer's forward to its backward pass, its input included.
    extra_nbytes
        Needed beside that during its backward pass, at the most.
    recompute_seconds
        More than without checkpointing.
    """

    kept_nbytes: int
    extra_nbytes: int
    recompute_seconds: float


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy for each layer, by its name, and what they take together.

    Attributes
    ----------
    nbytes
        Expected peak of a step, without parameters, gradients and optimizer.
    seconds
        Expected time that a step takes longer.
    fits
        Whether that is within the budget; if not, it is the least that there is.
    """

    strategies: dict[str, Strategy]
    nbytes: int
    seconds: float
    fits: bool


def choose_strategies(
    costs: Mapping[str, Mapping[Strategy, Cost]], budget_nbytes: int, *, base_nbytes: int = 0, head_nbytes: int = 0
) -> Choice:
    """The strategies that take the least time among those whose peak is within a budget.

    Layers run backwards from the last to the first, and each frees what it kept: while one does, what those before it
    keep is there, and what it needs besides. So the peak is ``base`` and the largest of ``kept up to layer i + extra of
    i`` and ``kept of all + head``; the least time under it is found by dynamic programming over the layers.

    Parameters
    ----------
    base_nbytes
        What stays beside the layers, such as embeddings.
    head_nbytes
        What the part behind the layers needs at the most, such as logits.
    """
    room = budget_nbytes - base_nbytes
    chosen = _fill(list(costs.values()), room, head_nbytes)
    if chosen is None:
        chosen = _smallest(list(costs.values()), room, head_nbytes)
    strategies = dict(zip(costs, chosen, strict=True))
    kept, peak = 0, head_nbytes
    for name, strategy in strategies.items():
        kept += costs[name][strategy].kept_nbytes
        peak = max(peak, kept + costs[name][strategy].extra_nbytes)
    nbytes = base_nbytes + max(peak, kept + head_nbytes)
    seconds = sum(costs[name][strategy].recompute_seconds for name, strategy in strategies.items())
    return Choice(strategies, nbytes, seconds, nbytes <= budget_nbytes)


def _fill(costs: Sequence[Mapping[Strategy, Cost]], room: int, head: int) -> list[Strategy] | None:
    """One strategy per layer within a room, by the least seconds; None if there are none."""
    unit = max(1, -(-room // _UNITS))
    size = room // unit  # in units of which sizes are rounded up
    if size < 0:
        return None
    least = np.full(size + 1, np.inf)  # seconds by what the layers so far keep
    least[0] = 0.0
    taken: list[np.ndarray] = []
    for each in costs:
        options = np.full((len(each), size + 1), np.inf)
        for index, cost in enumerate(each.values()):
            weight, end = -(-cost.kept_nbytes // unit), size + 1 - -(-cost.extra_nbytes // unit)
            if weight < end:
                options[index, weight:end] = least[: end - weight] + cost.recompute_seconds
        taken.append(options.argmin(axis=0))
        least = options.min(axis=0)
    end = size + 1 - -(-head // unit)
    if end <= 0 or not np.isfinite(least[:end]).any():
        return None
    return _trace(costs, taken, int(least[:end].argmin()), unit)


def _trace(
    costs: Sequence[Mapping[Strategy, Cost]], taken: Sequence[np.ndarray], kept: int, unit: int
) -> list[Strategy]:
    """The way that led to what is kept, from the last layer to the first."""
    chosen: list[Strategy] = []
    for each, choices in zip(reversed(costs), reversed(taken), strict=True):
        strategy = list(each)[choices[kept]]
        chosen.append(strategy)
        kept -= -(-each[strategy].kept_nbytes // unit)
    return chosen[::-1]


def _smallest(costs: Sequence[Mapping[Strategy, Cost]], room: int, head: int) -> list[Strategy]:
    """The strategies of the smallest peak, which is above the room."""
    worst = sum(max(cost.kept_nbytes + cost.extra_nbytes for cost in each.values()) for each in costs) + head
    low, high = max(room, 0), max(2 * worst, 1)
    chosen = _fill(costs, high, head)
    while high - low > max(1, high // _UNITS):
        middle = (low + high) // 2
        found = _fill(costs, middle, head)
        low, high, chosen = (middle, high, chosen) if found is None else (low, middle, found)
    assert chosen is not None  # twice what every layer could take was enough
    return chosen

"""Which numbers, rows and heads of a model are pruned: decided over its tensors before any is changed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import select

from arc_halo.errors import TensorNotFound
from arc_halo.quantization.sparsity import Energy, Mask, find_threshold, share, smallest
from arc_halo.registry.deriving import head_slice, read_heads
from arc_halo.registry.matrices import wanted_of
from arc_halo.registry.publishing import PROJECTIONS
from arc_halo.registry.streaming import read_blocks
from arc_halo.schema import TransformerLayer
from arc_halo.store import Meter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.formats.architectures import HeadSlice
    from arc_halo.quantization.sparsity import Threshold
    from arc_halo.schema import AttentionHead, Model, ModelWeight
    from arc_halo.store import Progress


def choose_numbers(
    session: Session, weights: Sequence[ModelWeight], sparsity: float, meter: Meter
) -> dict[str, Threshold]:
    """One threshold for all the tensors; they are to be pruned in this order."""

    def blocks() -> Iterator[np.ndarray]:
        return chain.from_iterable(_blocks(session, weight, meter) for weight in weights)

    count = share(sparsity, sum(weight.tensor.element_count for weight in weights))
    return dict.fromkeys((weight.name for weight in weights), find_threshold(blocks, count))


def choose_rows(session: Session, weights: Sequence[ModelWeight], sparsity: float, meter: Meter) -> dict[str, Mask]:
    """Masks of the rows with the smallest mean square in all the tensors."""
    energies = [_measure(session, weight, meter) for weight in weights]
    means = [energy.rows / len(energy.columns) for energy in energies]
    pruned = smallest(np.concatenate(means), share(sparsity, sum(map(len, means))))
    masks, first = {}, 0
    for weight, energy in zip(weights, energies, strict=True):
        mask = masks[weight.name] = Mask(len(energy.rows), len(energy.columns))
        own = pruned - first
        mask.rows[own[(own >= 0) & (own < len(mask.rows))]] = True
        first += len(mask.rows)
    return masks


@dataclass(frozen=True, slots=True)
class ChosenHeads:
    """Heads to be pruned, as indexes by layer, and the masks of the tensors that they are parts of."""

    pruned: Mapping[str, Sequence[int]]
    masks: Mapping[str, Mask]


@dataclass(frozen=True, slots=True)
class _Head:
    layer: str
    row: AttentionHead
    slices: Mapping[str, HeadSlice]


def choose_heads(
    session: Session,
    model: Model,
    weights: Sequence[ModelWeight],
    sparsity: float,
    *,
    across: bool,
    progress: Progress | None,
) -> ChosenHeads:
    """The heads with the smallest norm of what is theirs, in each layer or ``across`` all of them.

    Keys and values that heads share are masked when none of those heads is left.

    Raises
    ------
    TensorNotFound
        The model has no heads all of whose projections are among the weights.
    """
    heads = list(_heads(session, model, weights))
    if not heads:
        raise TensorNotFound(f"{model.name}@{model.version} has no attention heads in the tensors that are included")
    used = {each.tensor for head in heads for each in head.slices.values()}
    chosen = [weight for weight in weights if weight.name in used]
    meter = Meter(progress, "measure", sum(weight.tensor.nbytes for weight in chosen))
    energies = {weight.name: _measure(session, weight, meter) for weight in chosen}
    groups: dict[str, list[_Head]] = defaultdict(list)
    for head in heads:
        groups["" if across else head.layer].append(head)
    pruned = [head for group in groups.values() for head in _weakest(group, energies, sparsity)]
    masks = {name: Mask(len(energy.rows), len(energy.columns)) for name, energy in energies.items()}
    gone = {head.row.id for head in pruned}
    left = {(head.layer, head.row.kv_group) for head in heads if head.row.id not in gone}
    for head in pruned:
        for projection, part in head.slices.items():
            if projection in ("query", "output") or (head.layer, head.row.kv_group) not in left:
                masks[part.tensor].add(part.axis, part.start, part.stop)
    indexes: dict[str, list[int]] = defaultdict(list)
    for head in pruned:
        indexes[head.layer].append(head.row.head_index)
    return ChosenHeads(indexes, {name: mask for name, mask in masks.items() if mask.rows.any() or mask.columns.any()})


def _heads(session: Session, model: Model, weights: Sequence[ModelWeight]) -> Iterator[_Head]:
    names = {weight.id: weight.name for weight in weights}
    layers = select(TransformerLayer.id, TransformerLayer.path).where(TransformerLayer.model_id == model.id)
    paths = dict(session.execute(layers).all())
    for row in read_heads(session, model):
        slices = {projection: head_slice(row, projection, names) for projection in PROJECTIONS}
        if all(slices.values()):
            yield _Head(paths[row.layer_id], row, slices)  # type: ignore[arg-type]  # just looked at


def _weakest(heads: Sequence[_Head], energies: Mapping[str, Energy], sparsity: float) -> list[_Head]:
    scores = [
        sum(energies[part.tensor].within(part.axis, part.start, part.stop) for part in head.slices.values())
        for head in heads
    ]
    return [heads[index] for index in smallest(np.array(scores), share(sparsity, len(heads)))]


def _measure(session: Session, weight: ModelWeight, meter: Meter) -> Energy:
    *leading, columns = weight.tensor.shape
    energy, first = Energy(prod(leading), columns), 0
    for block in _blocks(session, weight, meter):
        energy.add(block, first)
        first += len(block)
    return energy


def _blocks(session: Session, weight: ModelWeight, meter: Meter) -> Iterator[np.ndarray]:
    for (block,) in read_blocks(session, wanted_of(weight)):
        yield block
        meter.add(block.nbytes)

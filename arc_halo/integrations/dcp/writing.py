"""A rank's part of a save plan as the state that `arc_halo.training` takes: no pickle on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import WriteItemType

from arc_halo.errors import CheckpointError
from arc_halo.integrations.dcp.layout import (
    PARAMS,
    Hyperparameter,
    Layout,
    Path,
    State,
    Weight,
    find_layout,
    joined_name,
)
from arc_halo.integrations.dcp.reading import NOTE
from arc_halo.integrations.torch import to_numpy
from arc_halo.integrations.torch_trees import to_plain
from arc_halo.training.checkpoint import CheckpointState
from arc_halo.training.optimizer import OptimizerSnapshot
from arc_halo.training.parts import Part
from arc_halo.training.trees import canonical_json, encode_tree

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem

    from arc_halo.training.checkpoint import Tree


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all ranks must find the same in their state dicts for their parts to fit together."""

    layout: Layout
    settings: tuple[bytes, ...]
    """Of each parameter group."""


@dataclass(slots=True)
class Collected:
    """What one rank brings.

    Attributes
    ----------
    further_weights
        Paths of sharded tensors that stand beside the model: weights under their whole name.
    entries
        Paths and values of all that is neither weights nor the optimizer's.
    """

    agreed: Agreed
    weights: dict[str, list[np.ndarray | Part]] = field(default_factory=dict)
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    further_weights: list[Path] = field(default_factory=list)
    entries: list[tuple[Path, Tree]] = field(default_factory=list)

    def state(self, *, is_first: bool, rng: Tree, data_loader: Tree) -> CheckpointState:
        """The state to be written; what only other ranks than the first have stands in what is their own."""
        layout = self.agreed.layout
        note = {"further_weights": self.further_weights, "entries": self.entries}
        state = CheckpointState({name: _held(parts) for name, parts in self.weights.items()}, rng=rng)
        if layout.optimizer is not None:
            states = {
                parameter: {name: _held(value) if isinstance(value, list) else value for name, value in states.items()}
                for parameter, states in self.states.items()
            }
            state.optimizer = OptimizerSnapshot(states, self.groups)
        if is_first:
            roots = {"weights": layout.weights, "optimizer": layout.optimizer, "is_joined": layout.is_joined}
            state.extra = {NOTE: roots | note}
            state.data_loader = data_loader
        elif self.entries or self.further_weights:
            state.data_loader = {NOTE: note | {"data_loader": data_loader}}
        else:
            state.data_loader = data_loader
        return state


def collect(plan: SavePlan, planner: SavePlanner) -> Collected:
    """Resolve a rank's plan.

    Raises
    ------
    CheckpointError
        A value is an object that would have to be pickled, or the planner keeps values to itself.
    TensorError
        A tensor has no plain memory.
    """
    entries = _Entries(planner)
    layout = find_layout(
        [path for path, value in entries.by_path.items() if isinstance(value, torch.Tensor)],
        {path: value for path, value in entries.by_path.items() if not isinstance(value, torch.Tensor)},
    )
    groups = _groups(layout, entries.by_path)
    settings = tuple(_settings(group) for group in groups)
    collected = Collected(Agreed(layout, settings), groups=groups)
    for item in plan.items:
        path = entries.path(item.index.fqn)
        if item.type is WriteItemType.BYTE_IO:
            _add_value(collected, path, entries.by_path[path])
        else:
            _add_tensor(collected, path, item, planner.resolve_data(item))
    if taken := {joined_name(path) for path in collected.further_weights} & _weight_names(layout, entries.by_path):
        raise CheckpointError(
            f"{min(taken)!r} is a weight of the model and another tensor beside it; rename one of them"
        )
    return collected


class _Entries:
    """A state dict as its planner has flattened it, by path."""

    def __init__(self, planner: SavePlanner) -> None:
        if not isinstance(planner, DefaultSavePlanner):
            raise CheckpointError(
                f"{type(planner).__qualname__} gives values only as pickles, which are not stored; derive it from "
                "DefaultSavePlanner"
            )
        self._paths = planner.mappings
        self.by_path = {self.path(name): value for name, value in planner.state_dict.items()}

    def path(self, name: str) -> Path:
        """Where a name comes from; a planner that renames entries keeps no paths of them."""
        path = tuple(self._paths.get(name, ()))
        return path if joined_name(path) == name and path else (name,)


def _add_value(collected: Collected, path: Path, value: Any) -> None:
    place = collected.agreed.layout.place(path)
    if isinstance(place, State) and type(value) in (bool, int, float):
        collected.states.setdefault(place.parameter, {})[place.name] = value
    elif not isinstance(place, Hyperparameter):
        collected.entries.append((path, to_plain(value, joined_name(path))))


def _add_tensor(collected: Collected, path: Path, item: WriteItem, tensor: Any) -> None:
    place = collected.agreed.layout.place(path)
    if isinstance(place, Hyperparameter):
        return
    array = to_numpy(tensor, joined_name(path))
    assert item.tensor_data is not None
    size, chunk = tuple(item.tensor_data.size), item.tensor_data.chunk
    held = array if array.shape == size else Part(array, tuple(chunk.offsets), size)
    if isinstance(place, State):
        parts = collected.states.setdefault(place.parameter, {}).setdefault(place.name, [])
        parts.append(held)
    elif isinstance(place, Weight):
        collected.weights.setdefault(place.name, []).append(held)
    elif item.type is WriteItemType.SHARD:
        if joined_name(path) not in collected.weights:
            collected.further_weights.append(path)
        collected.weights.setdefault(joined_name(path), []).append(held)
    else:
        collected.entries.append((path, to_plain(tensor, joined_name(path))))


def _held(parts: list[np.ndarray | Part]) -> Any:
    return parts[0] if len(parts) == 1 else parts


def _weight_names(layout: Layout, entries: dict[Path, Any]) -> set[str]:
    places = (layout.place(path) for path, value in entries.items() if isinstance(value, torch.Tensor))
    return {place.name for place in places if isinstance(place, Weight)}


def _groups(layout: Layout, entries: dict[Path, Any]) -> list[dict[str, Any]]:
    """The optimizer's groups; where keys are joined, parameters with equal settings are one, in a stated order."""
    by_owner: dict[int | str, dict[str, Any]] = {}
    for path, value in entries.items():
        place = layout.place(path)
        if isinstance(place, Hyperparameter):
            by_owner.setdefault(place.owner, {})[place.name] = to_plain(value, joined_name(path))
    if not layout.is_joined:
        return [by_owner[index] for index in sorted(by_owner)]
    alike: dict[bytes, dict[str, Any]] = {}
    for name, group in by_owner.items():
        alike.setdefault(_settings(group), group | {PARAMS: []})[PARAMS].append(name)
    return [alike[settings] for settings in sorted(alike)]


def _settings(group: dict[str, Any]) -> bytes:
    encoded, _ = encode_tree({name: value for name, value in group.items() if name != PARAMS}, "group")
    return canonical_json(encoded)


def refuse_disagreement(of_ranks: Mapping[int, Agreed]) -> None:
    """Raise `CheckpointError` where the parts of ranks would not fit together.

    A group's parameters may be spread over ranks, as under pipeline parallelism; its settings are those of all.
    """
    (least, first), *others = of_ranks.items()
    for rank, agreed in others:
        if agreed.layout != first.layout:
            raise CheckpointError(
                f"the state dict of rank {rank} is laid out otherwise than that of rank {least}: weights under "
                f"{agreed.layout.weights}, not {first.layout.weights}, the optimizer under {agreed.layout.optimizer}, "
                f"not {first.layout.optimizer}; give all ranks the same keys"
            )
        if any(own != known for own, known in zip(agreed.settings, first.settings, strict=False)):
            raise CheckpointError(
                f"the parameter groups of rank {rank} have other settings than those of rank {least} in the same "
                "places; make them in the same order on all ranks"
            )

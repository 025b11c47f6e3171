"""A state taken apart into what tables hold: tensors, numbers and JSON; and put together again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from arc_halo.errors import CheckpointError, TensorError
from arc_halo.store import ArraySource
from arc_halo.training.optimizer import STEP, Number, OptimizerSnapshot, hyperparameters, take_optimizer_apart
from arc_halo.training.parts import Shape, parts_of
from arc_halo.training.trees import encode_tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

    from arc_halo.training.checkpoint import CheckpointState, CheckpointType, Tree
    from arc_halo.training.parts import Held

RANK_PARTS: Final = 1 << 16
"""One more than the parts of one tensor that a rank may hold; they are numbered from its rank times this, and one."""
MAX_RANKS: Final = 1 << 15
_MAX_NAME_NBYTES: Final = 1000  # two of them and a key fit into a row of an index
_LEFT_OUT: Final[Mapping[str, tuple[str, ...]]] = {
    "full": (),
    "weights": ("optimizer", "gradients", "scheduler", "scaler", "rng", "data_loader"),
    "optimizer": ("weights", "gradients"),
}
OWN_TREES: Final[Mapping[str, str]] = {"rng": "rng_state", "data_loader": "data_loader_state"}
"""Trees that each rank has for itself, and their columns."""
SHARED_TREES: Final[Mapping[str, str]] = {
    "scheduler": "scheduler_state",
    "scaler": "scaler_state",
    "extra": "extra_state",
    "optimizer": "optimizer_groups",
}


class Key(NamedTuple):
    """What an array is to a checkpoint; ``state`` is empty but for states of the optimizer."""

    component: str
    name: str
    state: str = ""

    def __str__(self) -> str:
        return f"{self.component} {self.name!r}" + (f" {self.state!r}" if self.state else "")


@dataclass(frozen=True, slots=True)
class Block:
    """A whole array, or a part of one, about to be stored."""

    key: Key
    shard_index: int
    offsets: Shape | None
    full_shape: Shape | None
    source: ArraySource


@dataclass(slots=True)
class Contents:
    """A state taken apart.

    Attributes
    ----------
    group_of, hyperparameters
        Of parameters that the optimizer knows the index of their group; of groups what SQL may ask.
    own, shared
        JSON by the column it belongs to: what each rank has for itself, and what one tells for all.
    """

    blocks: list[Block] = field(default_factory=list)
    numbers: dict[tuple[str, str], Number] = field(default_factory=dict)
    group_of: dict[str, int] = field(default_factory=dict)
    hyperparameters: list[dict[str, Any]] = field(default_factory=list)
    own: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of all arrays, before they are shared and compressed."""
        return sum(block.source.nbytes for block in self.blocks)

    @property
    def sources(self) -> list[ArraySource]:
        """In the order of the blocks; no two have one name."""
        return [block.source for block in self.blocks]

    def step_count(self, parameter: str) -> int | None:
        """How often the optimizer has updated a parameter, where it says so."""
        number = self.numbers.get((parameter, STEP))
        return int(number.value) if number is not None and number.value >= 0 and number.value.is_integer() else None


def take_apart(state: CheckpointState, checkpoint_type: CheckpointType = "full", rank: int = 0) -> Contents:
    """Take a state apart, of it what belongs into a checkpoint of that type.

    Raises
    ------
    CheckpointError
        A name or a value is none that can be stored.
    """
    apart = _Apart(rank)
    left_out = _LEFT_OUT[checkpoint_type]
    for component in ("weights", "gradients"):
        if component not in left_out:
            for name, held in (getattr(state, component) or {}).items():
                apart.add(Key(component, name), held)
    if state.optimizer is not None and "optimizer" not in left_out:
        apart.add_optimizer(state.optimizer)
    for attribute, column in OWN_TREES.items():
        if attribute not in left_out and (tree := getattr(state, attribute)) is not None:
            component = "rng" if attribute == "rng" else "other"
            apart.contents.own[column] = apart.encode(tree, component, f"{attribute}/{rank}")
    for attribute, column in SHARED_TREES.items() if rank == 0 else ():
        if attribute not in (*left_out, "optimizer") and (tree := getattr(state, attribute)) is not None:
            apart.contents.shared[column] = apart.encode(tree, "other", attribute)
    return apart.contents


class _Apart:
    """Contents that grow."""

    def __init__(self, rank: int) -> None:
        self.contents = Contents()
        self._rank = rank

    def add(self, key: Key, held: Held) -> None:
        for name in key[1:] if key.state else key[1:2]:
            _check_name(key, name)
        found = parts_of(str(key), held)
        if len(found) >= RANK_PARTS:
            raise CheckpointError(f"{key} is held in {len(found):,} parts; a rank may hold {RANK_PARTS - 1:,}")
        for index, (array, offsets, full_shape) in enumerate(found, 1):
            shard_index = 0 if offsets is None else self._rank * RANK_PARTS + index
            name = str(key) if offsets is None else f"{key} part {shard_index}"
            try:
                source = ArraySource(name, array)
            except TensorError as error:
                raise CheckpointError(str(error)) from None
            self.contents.blocks.append(Block(key, shard_index, offsets, full_shape, source))

    def add_optimizer(self, snapshot: OptimizerSnapshot) -> None:
        remembered = take_optimizer_apart(snapshot)
        for (name, state), held in remembered.arrays.items():
            self.add(Key("optimizer", name, state), held)
        for name, state in remembered.numbers:
            _check_name(Key("optimizer", name, state), name)
            _check_name(Key("optimizer", name, state), state)
        self.contents.numbers = remembered.numbers
        self.contents.group_of = remembered.group_of
        self.contents.hyperparameters = [hyperparameters(group) for group in remembered.groups]
        name = f"optimizer/{self._rank}" if self._rank else "optimizer"
        self.contents.shared["optimizer_groups"] = self.encode(remembered.groups, "other", name)

    def encode(self, tree: Tree, component: str, name: str) -> Any:
        encoded, arrays = encode_tree(tree, name)
        for array_name, array in arrays.items():
            self.add(Key(component, array_name), array)
        return encoded


def _check_name(key: Key, name: str) -> None:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise CheckpointError(f"{key}: {name!r:.80} is no name; give printable text")
    if len(name.encode()) > _MAX_NAME_NBYTES:
        raise CheckpointError(f"{key}: the name has {len(name.encode()):,} bytes; {_MAX_NAME_NBYTES:,} are allowed")


def arrays_below(arrays: Mapping[Key, np.ndarray], component: str) -> dict[str, np.ndarray]:
    """Arrays of one component by name."""
    return {key.name: array for key, array in arrays.items() if key.component == component}


def optimizer_values(
    arrays: Mapping[Key, np.ndarray], numbers: Mapping[tuple[str, str], Number]
) -> Iterable[tuple[str, str, np.ndarray | Number]]:
    """Parameter, state and value of everything that the optimizer remembers."""
    for key, array in arrays.items():
        if key.component == "optimizer":
            yield key.name, key.state, array
    for (name, state), number in numbers.items():
        yield name, state, number

"""An optimizer's memory as rows: states by parameter name, hyperparameters by group."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from arc_halo.dtypes import DTYPES, by_name
from arc_halo.errors import CheckpointError
from arc_halo.training.parts import is_held
from arc_halo.training.trees import encode_tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from arc_halo.training.parts import Held

StateValue: TypeAlias = "Held | float | int"
"""A tensor such as exp_avg, or a number such as step."""
STEP: Final = "step"
_OTHER: Final = "other_states"
_EXACT_INTS: Final = 1 << 53


@dataclass(frozen=True, slots=True, eq=False)
class OptimizerSnapshot:
    """What an optimizer remembers, by the names of the parameters instead of their order.

    Attributes
    ----------
    states
        State names and values by parameter name. Besides arrays and numbers a value may be any tree.
    groups
        Hyperparameters of each parameter group, and in ``params`` the names of its parameters in order.
    """

    states: Mapping[str, Mapping[str, StateValue | Any]]
    groups: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Number:
    """A state that is one number.

    Attributes
    ----------
    dtype
        Of an array without axes; ``int`` or ``bool`` for Python's; None for a float.
    """

    value: float
    dtype: str | None

    @classmethod
    def of(cls, value: Any) -> Number | None:
        """None for what is no number, or has bits that a double does not keep."""
        if isinstance(value, bool):
            return cls(float(value), "bool")
        if type(value) is int:
            return cls(float(value), "int") if abs(value) <= _EXACT_INTS else None
        if type(value) is float:
            return None if math.isnan(value) else cls(value, None)
        if not isinstance(value, np.ndarray | np.generic) or value.ndim:
            return None
        array = np.asarray(value)
        little = array.dtype.newbyteorder("<")
        name = next((each.name for each in DTYPES.values() if each.numpy == little), None)
        if name is None or name == "C64" or math.isnan(float(array)):
            return None
        with np.errstate(invalid="ignore"):  # an integer that overflows is none that comes back
            again = np.asarray(float(array)).astype(little)
        return cls(float(array), name) if again.tobytes() == array.astype(little).tobytes() else None

    def restore(self) -> np.ndarray | float | int:
        """What it was made of."""
        if self.dtype is None:
            return self.value
        if self.dtype in ("int", "bool"):
            return int(self.value) if self.dtype == "int" else bool(self.value)
        return np.asarray(self.value).astype(by_name(self.dtype).numpy)


@dataclass(slots=True)
class Remembered:
    """A snapshot taken apart.

    Attributes
    ----------
    arrays, numbers
        By parameter name and state name.
    group_of
        Index of each parameter's group.
    groups
        The tree that is left: hyperparameters and names, and behind the groups, in an entry of its own, states that are
        neither arrays nor numbers.
    """

    arrays: dict[tuple[str, str], Held] = field(default_factory=dict)
    numbers: dict[tuple[str, str], Number] = field(default_factory=dict)
    group_of: dict[str, int] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)


def take_optimizer_apart(snapshot: OptimizerSnapshot) -> Remembered:
    """Sort states by what they are.

    Raises
    ------
    CheckpointError
        A parameter stands in two groups, or in none and has states.
    """
    done = Remembered()
    for index, group in enumerate(snapshot.groups):
        for name in _names_of(index, group):
            if name in done.group_of:
                raise CheckpointError(f"parameter {name!r} stands twice in the optimizer's groups; name each once")
            done.group_of[name] = index
        done.groups.append(dict(group) | {"params": list(group["params"])})
    others: dict[str, dict[str, Any]] = {}
    for name, states in snapshot.states.items():
        if name not in done.group_of:
            raise CheckpointError(f"parameter {name!r} has states, but no group of the optimizer names it in 'params'")
        other: dict[str, Any] = {}
        for state, value in states.items():
            if (number := Number.of(value)) is not None:
                done.numbers[name, state] = number
            elif is_held(value):
                done.arrays[name, state] = value
            else:
                other[state] = value
        if other or not states:
            others[name] = other
    if others:
        done.groups.append({_OTHER: others})
    return done


def put_optimizer_together(
    groups: Sequence[Mapping[str, Any]], values: Iterable[tuple[str, str, np.ndarray | Number]]
) -> OptimizerSnapshot:
    """The snapshot of groups as `take_optimizer_apart` left them, and parameter, state and value of each row."""
    states: dict[str, dict[str, Any]] = {}
    for name, state, value in values:
        states.setdefault(name, {})[state] = value.restore() if isinstance(value, Number) else value
    for group in groups:
        for name, others in group.get(_OTHER, {}).items():
            states.setdefault(name, {}).update(others)
    return OptimizerSnapshot(states, [dict(group) for group in groups if _OTHER not in group])


def merge_groups(of_ranks: Iterable[Sequence[Any]]) -> list[Any]:
    """Encoded groups of several ranks as one: of each rank's n-th group the names, of the first its hyperparameters."""
    merged: list[Any] = []
    others = []
    for groups in of_ranks:
        own = [group for group in groups if _OTHER not in group]
        others += [group for group in groups if _OTHER in group]
        for group, known in zip(own, merged, strict=False):
            known_names = set(known["params"])
            known["params"] += [name for name in group["params"] if name not in known_names]
        merged += [dict(group) | {"params": list(group["params"])} for group in own[len(merged) :]]
    return merged + others


def hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    """What SQL may ask of a group: numbers and texts, and lists of those; tuples are lists there."""
    told = {}
    for key, value in group.items():
        encoded = encode_tree(list(value) if isinstance(value, tuple) else value, key)[0]
        if key != "params" and not any(isinstance(each, dict | list) for each in _elements(encoded)):
            told[key] = encoded
    return told


def _elements(encoded: Any) -> Sequence[Any]:
    return encoded if isinstance(encoded, list) else [encoded]


def _names_of(index: int, group: Mapping[str, Any]) -> Sequence[str]:
    names = group.get("params")
    if not isinstance(names, list | tuple) or not all(_is_key(key) for key in group):
        raise CheckpointError(
            f"group {index} of the optimizer is none; give hyperparameters by name, and 'params', a list of names"
        )
    for name in names:
        if not isinstance(name, str) or not name.isprintable():
            raise CheckpointError(f"group {index} of the optimizer: {name!r:.80} is no name of a parameter")
    return names


def _is_key(key: Any) -> bool:
    return isinstance(key, str) and key.isprintable() and not key.startswith("$") and key != _OTHER

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
        The tree that is left: hyperparameters, names, and states that are neither arrays nor numbers.
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
    done = Remembered(groups=[dict(group) for group in snapshot.groups])
    for index, group in enumerate(snapshot.groups):
        for name in group.get("params", ()):
            if name in done.group_of:
                raise CheckpointError(f"parameter {name!r} stands twice in the optimizer's groups; name each once")
            done.group_of[name] = index
    for name, states in snapshot.states.items():
        if name not in done.group_of:
            raise CheckpointError(f"parameter {name!r} has states, but no group of the optimizer names it in 'params'")
        others: dict[str, Any] = {}
        for state, value in states.items():
            if (number := Number.of(value)) is not None:
                done.numbers[name, state] = number
            elif is_held(value):
                done.arrays[name, state] = value
            else:
                others[state] = value
        if others or not states:
            done.groups[done.group_of[name]].setdefault(_OTHER, {})[name] = others
    return done


def put_optimizer_together(
    groups: Sequence[Mapping[str, Any]], values: Iterable[tuple[str, str, np.ndarray | Number]]
) -> OptimizerSnapshot:
    """The snapshot of groups as `take_optimizer_apart` left them, and parameter, state and value of each row."""
    kept = [dict(group) for group in groups]
    states: dict[str, dict[str, Any]] = {}
    for name, state, value in values:
        states.setdefault(name, {})[state] = value.restore() if isinstance(value, Number) else value
    for group in kept:
        for name, others in group.pop(_OTHER, {}).items():
            states.setdefault(name, {}).update(others)
    return OptimizerSnapshot(states, kept)


def hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    """What SQL may ask of a group: what JSON has, too; tuples are lists there."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in group.items()}
    encoded = {key: encode_tree(value, key)[0] for key, value in values.items() if key not in ("params", _OTHER)}
    return {key: value for key, value in encoded.items() if value == values[key] and "\0" not in key}

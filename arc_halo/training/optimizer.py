"""An optimizer's memory as rows: states by parameter name, hyperparameters by group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from arc_halo.training.parts import Held

StateValue: TypeAlias = "Held | float | int"
"""A tensor such as exp_avg, or a number such as step."""


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

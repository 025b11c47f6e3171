"""The maths of merging: numbers of several models to those of one, and the recipes that say how.

Method
    How tensors of one name become one. Its id is mergekit's.
Recipe
    Which models are merged, by which method, with which parameters: mergekit's YAML.
Base
    The model that the others were made from; what they differ from it by are task vectors.
Task vector
    A tensor of a model minus that of the base.
Density
    The share of a task vector's numbers that stays.
Mask
    Which numbers of a task vector stay, where chance decides.
Gradient
    A list in place of a number: interpolated from the first layer to the last.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from arc_halo.errors import MergeError
from arc_halo.merging.abc import Method, Parameter, Task
from arc_halo.merging.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from arc_halo.merging.dare import DareLinear, DareTies, drawn_mask, given_mask
from arc_halo.merging.linear import Linear
from arc_halo.merging.slerp import Slerp
from arc_halo.merging.task_arithmetic import TaskArithmetic
from arc_halo.merging.ties import Ties

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["METHODS", "Method", "Parameter", "Task", "drawn_mask", "given_mask", "method"]

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        each.id: each
        for each in (
            Linear(), Slerp(), TaskArithmetic(), Ties(), DareTies(), DareLinear(), Breadcrumbs(), BreadcrumbsTies(),
        )
    }
)  # fmt: skip


def method(method_id: str) -> Method:
    """The method of an id.

    Raises
    ------
    MergeError
        This version has no such method.
    """
    try:
        return METHODS[method_id]
    except KeyError:
        raise MergeError(f"merge method {method_id!r} is not known; there are {', '.join(METHODS)}") from None

"""How good answers are: agreement, variety, quality and what was gained by asking several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arc_halo.fusion.figures import Figures

if TYPE_CHECKING:
    from arc_halo.fusion.operations.operation import Operation
    from arc_halo.fusion.strategies.protocol import Fused


def measure_operation(operation: Operation, fused: Fused | None, *, scorer: Any = None, embed: Any = None) -> Figures:
    """Figures of one operation; the quality of each answer is left in its call."""
    del operation, fused, scorer, embed
    return Figures()

"""All members answer; what they agree on most is the answer."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from arc_halo.errors import OperationFailed
from arc_halo.fusion.strategies.protocol import Fused, Strategy

if TYPE_CHECKING:
    from arc_halo.fusion.operations import Operation


@dataclass(frozen=True)
class Parallel(Strategy):
    """Ask all, and take the answer with the greatest sum of weights."""

    name: ClassVar[str] = "parallel"

    def fuse(self, operation: Operation) -> Fused:
        """As `Strategy.fuse`."""
        calls = operation.ask_all((member, operation.question()) for member in operation.members)
        weights: dict[str, float] = defaultdict(float)
        for call in calls:
            if call.is_answered:
                weights[call.text] += call.member.weight
        if not weights:
            raise OperationFailed("no member answered")
        text = max(weights, key=lambda each: weights[each])
        return Fused(text)

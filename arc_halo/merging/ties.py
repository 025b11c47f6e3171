"""Task vectors trimmed to their largest numbers, of which those of the elected sign are averaged."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from arc_halo.merging.selection import PASSES, Ranks, find_between
from arc_halo.merging.task_arithmetic import DENSITY, LAMBDA, WEIGHT, TaskVectors, normalize, rescale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arc_halo.merging.abc import Task, Values
    from arc_halo.merging.task_arithmetic import Chooser, Vectors


class Ranked(TaskVectors):
    """Task vectors of which numbers are kept by the rank of their magnitude."""

    @abstractmethod
    def ranks(self, size: int, values: Values) -> Ranks | None:
        """Which ranks are kept of so many numbers; None for all."""

    def choose(self, task: Task, vectors: Vectors) -> Sequence[Chooser | None]:
        """Those between two thresholds, found in two passes."""
        ranks = self._ranks(task)
        if not self.measures(task):
            return [None] * len(ranks)
        found = find_between(vectors, [each or Ranks(0, task.size) for each in ranks])
        return [between.begin if wanted else None for between, wanted in zip(found, ranks, strict=True)]

    def measures(self, task: Task) -> int:
        """Two, unless every vector stays whole."""
        return PASSES if any(self._ranks(task)) else 0

    def _ranks(self, task: Task) -> list[Ranks | None]:
        return [self.ranks(task.size, task.inputs[index]) for index in task.others]


class Ties(Ranked):
    """Trim, elect sign, merge: Yadav et al. 2023, https://arxiv.org/abs/2306.01708.

    Of ``n`` numbers of a task vector the ``max(1, int(density * n))`` largest stay, which is mergekit's rounding: a
    threshold of each tensor, not of the model.
    """

    id = "ties"
    parameters = (WEIGHT, DENSITY, LAMBDA, normalize(default=True), rescale(default=False))
    elects = True

    def ranks(self, size: int, values: Values) -> Ranks | None:
        """The last of the order."""
        density = float(values["density"])
        if density >= 1:
            return None
        kept = max(1, int(density * size)) if density > 0 and size else 0
        return Ranks(size - kept, size)

"""Progress of long work, as bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[str, int, int], None]
"""Called with a phase (``download``, ``hash``, ``store``, ``embed``, ``write``, ``verify``), bytes done and in all."""


@dataclass(slots=True)
class Meter:
    """Adds up one phase and reports it."""

    report: Progress | None
    phase: str
    total: int
    done: int = 0

    def add(self, nbytes: int) -> None:
        """Count bytes that are through."""
        self.done += nbytes
        if self.report is not None:
            self.report(self.phase, self.done, self.total)

"""What quantising or pruning costs: how far numbers are from those that they stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(slots=True)
class Deviation:
    """Sums over the numbers seen so far, in one pass and any blocks; what is not finite is left out.

    Attributes
    ----------
    original, restored, product, difference
        Sums of squares of the numbers before and after, of their products, and of squares of their differences.
    max_abs
        The largest difference.
    count
        How many numbers.
    """

    original: float = 0.0
    restored: float = 0.0
    product: float = 0.0
    difference: float = 0.0
    max_abs: float = 0.0
    count: int = 0

    def add(self, original: np.ndarray, restored: np.ndarray) -> None:
        """Take in a block of numbers and what became of them, of one shape."""
        before, after = (np.asarray(each, np.float64).reshape(-1) for each in (original, restored))
        finite = np.isfinite(before) & np.isfinite(after)
        if not finite.all():
            before, after = before[finite], after[finite]
        with np.errstate(over="ignore", invalid="ignore"):  # squares of float64 may have no number; figures() says so
            apart = after - before
            self.original += float(before @ before)
            self.restored += float(after @ after)
            self.product += float(before @ after)
            self.difference += float(apart @ apart)
        self.max_abs = max(self.max_abs, float(np.abs(apart).max(initial=0)))
        self.count += before.size

    @property
    def rms(self) -> float:
        """Root of the mean squared difference."""
        return math.sqrt(self.difference / self.count) if self.count else 0.0

    @property
    def relative(self) -> float:
        """The distance in units of the original's norm, 0 of nothing; infinite where nothing became something."""
        if not self.original:
            return math.inf if self.difference else 0.0
        return math.sqrt(self.difference / self.original)

    @property
    def cosine(self) -> float | None:
        """Of the angle between the two as vectors; None where one is zero, or too long for float64."""
        norms = math.sqrt(self.original) * math.sqrt(self.restored)
        return min(1.0, max(-1.0, self.product / norms)) if norms and math.isfinite(norms) else None

    def figures(self) -> dict[str, float | None]:
        """The measures by name, as JSON holds them: None for what is infinite, or has no direction."""
        found = {"max_abs": self.max_abs, "rms": self.rms, "cosine": self.cosine, "relative": self.relative}
        return {name: each if each is not None and math.isfinite(each) else None for name, each in found.items()}

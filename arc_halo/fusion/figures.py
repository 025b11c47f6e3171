"""What is measured of one operation or of many; None where it cannot be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figures:
    """The columns of ``reactor_metrics`` that say how good answers are.

    Attributes
    ----------
    coherence
        How much members agree, from 0 to 1.
    diversity
        How much they differ, from 0 to 1.
    quality
        Of the joint answer, by a reference or a scorer.
    gain
        Quality above that of the best single member.
    oracle_gap
        Quality below that of the best answer any member gave.
    calibration_error, brier_score
        Of scores as probabilities that an answer is right; over many operations only.
    """

    coherence: float | None = None
    diversity: float | None = None
    quality: float | None = None
    gain: float | None = None
    oracle_gap: float | None = None
    calibration_error: float | None = None
    brier_score: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured."""
        return self == Figures()

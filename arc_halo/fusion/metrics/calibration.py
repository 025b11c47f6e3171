"""Whether scores are the probabilities of being right that they look like."""

from __future__ import annotations

import numpy as np

from arc_halo.errors import FusionError


def expected_calibration_error(scores: np.ndarray, right: np.ndarray, *, bins: int = 15) -> float | None:
    r"""Mean distance of score and share of right answers, from 0 to 1.

    :math:`\sum_b \frac{n_b}{n} |\mathrm{acc}(b) - \mathrm{conf}(b)|` over bins of equal width; a score on the border of
    two is in the lower one (Guo et al., On calibration of modern neural networks, 2017).

    Parameters
    ----------
    scores
        From 0 to 1, shape [answers].
    right
        1 or 0, of the same shape.

    Returns
    -------
    float or None
        None without answers.

    Raises
    ------
    FusionError
        Scores are no probabilities, or there are not as many of both.
    """
    known, truth = _checked(scores, right)
    if not known.size:
        return None
    at = np.clip(np.ceil(known * bins).astype(int) - 1, 0, bins - 1)
    # The counts of bins cancel: n_b / n * |sum / n_b| = |sum| / n.
    return float(np.abs(np.bincount(at, truth - known, bins)).sum() / known.size)


def brier_score(scores: np.ndarray, right: np.ndarray) -> float | None:
    """Mean squared difference of score and being right, from 0 to 1 (Brier 1950).

    Parameters and errors are those of `expected_calibration_error`.
    """
    known, truth = _checked(scores, right)
    return float(((known - truth) ** 2).mean()) if known.size else None


def _checked(scores: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known, truth = np.asarray(scores, np.float64), np.asarray(right, np.float64)
    if known.ndim != 1 or known.shape != truth.shape or not ((known >= 0) & (known <= 1)).all():
        raise FusionError("scores are from 0 to 1, one for each answer")
    return known, truth

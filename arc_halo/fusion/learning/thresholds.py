"""Thresholds of cascades: when the answer of a cheaper member is good enough."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from arc_halo.errors import FusionError

_GRID: Final = 40
_MAX_COMBINATIONS: Final = 200_000
_MAX_MEMBERS: Final = 12  # of more, not even two thresholds each can all be tried
_ROUNDING: Final = 1e-9  # the same numbers summed in another order are not the same to the bit


@dataclass(frozen=True, slots=True)
class FittedCascade:
    """Thresholds with what they gave on the operations they were fitted to.

    Attributes
    ----------
    thresholds
        Of each member but the last, in their order: confidence from which its answer is taken.
    quality, cost
        Means over the operations.
    """

    thresholds: tuple[float, ...]
    quality: float
    cost: float


def run_cascade(
    confidence: np.ndarray, quality: np.ndarray, cost: np.ndarray, thresholds: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Quality and cost of each operation, had a cascade with these thresholds answered it.

    Parameters
    ----------
    confidence, quality, cost
        Of each member's answer, float of shape [operations, members], in the order of asking. Whom a cascade reaches
        it pays for.

    Returns
    -------
    tuple of ndarray
        Both of shape [operations].
    """
    count, members = confidence.shape
    taken = np.full(count, members - 1)
    for member in reversed(range(members - 1)):
        taken[confidence[:, member] >= thresholds[member]] = member
    rows = np.arange(count)
    return quality[rows, taken], np.cumsum(cost, axis=1)[rows, taken]


def fit_cascade(
    confidence: np.ndarray,
    quality: np.ndarray,
    cost: np.ndarray,
    *,
    least_quality: float | None = None,
    most_cost: float | None = None,
) -> FittedCascade:
    """The thresholds that cost least for a quality, or give the best quality for a cost.

    Quantiles of confidences are tried, all together (FrugalGPT, Chen, Zaharia & Zou, 2023): the best is that of a
    grid. Thresholds that were fitted to few operations promise too much; look at others before relying on them.

    Parameters
    ----------
    confidence, quality, cost
        As in `run_cascade`.
    least_quality
        Mean quality to reach at the least cost; by default, without ``most_cost``, that of the best single member.
    most_cost
        Mean cost to keep to at the best quality.

    Raises
    ------
    FusionError
        There are fewer than two members or more than twelve, or nothing reaches what is asked.
    """
    if confidence.ndim != 2 or confidence.shape[1] < 2 or not len(confidence):  # noqa: PLR2004  # axes, members
        raise FusionError("a cascade is fitted to operations in which at least two members answered")
    if confidence.shape[1] > _MAX_MEMBERS:
        raise FusionError(f"thresholds of at most {_MAX_MEMBERS} members can be tried, not of {confidence.shape[1]}")
    if least_quality is None and most_cost is None:
        least_quality = float(quality.mean(axis=0).max())
    members = confidence.shape[1]
    grid = min(_GRID, max(2, int(_MAX_COMBINATIONS ** (1 / (members - 1)))))
    steps = np.linspace(0, 1, grid)
    tried = [[*np.unique(np.quantile(confidence[:, each], steps)), np.inf] for each in range(members - 1)]
    best: FittedCascade | None = None
    for thresholds in product(*tried):
        each_quality, each_cost = run_cascade(confidence, quality, cost, thresholds)
        found = FittedCascade(tuple(map(float, thresholds)), float(each_quality.mean()), float(each_cost.mean()))
        if least_quality is not None and found.quality < least_quality - _ROUNDING:
            continue
        if most_cost is not None and found.cost > most_cost * (1 + _ROUNDING):
            continue
        key, known = _rank(found, most_cost), None if best is None else _rank(best, most_cost)
        if known is None or key < known:
            best = found
    if best is None:
        raise FusionError(f"no thresholds give a quality of {least_quality} at a cost of at most {most_cost}")
    return best


def calibrate(confidence: np.ndarray, is_right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidence as the probability of being right: the isotonic fit (pool adjacent violators, Ayer et al., 1955).

    Parameters
    ----------
    confidence, is_right
        Of shape [answers].

    Returns
    -------
    tuple of ndarray
        Confidences in rising order and the probability at each; `numpy.interp` gives those between.
    """
    if confidence.shape != is_right.shape or not len(confidence):
        raise FusionError("calibration needs a confidence and an outcome of each answer")
    levels, member_of = np.unique(confidence, return_inverse=True)
    counts = np.bincount(member_of).astype(np.float64)
    means = np.bincount(member_of, weights=is_right) / counts
    blocks: list[list[float]] = []  # mean, weight, and how many levels
    for mean, count in zip(means, counts, strict=True):
        blocks.append([mean, count, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (low, low_count, low_levels), (high, high_count, high_levels) = blocks[-2:]
            weight = low_count + high_count
            blocks[-2:] = [[(low * low_count + high * high_count) / weight, weight, low_levels + high_levels]]
    return levels, np.repeat([block[0] for block in blocks], [int(block[2]) for block in blocks])


def _rank(found: FittedCascade, most_cost: float | None) -> tuple[float, float]:
    """Smaller is better."""
    return (-found.quality, found.cost) if most_cost is not None else (found.cost, -found.quality)

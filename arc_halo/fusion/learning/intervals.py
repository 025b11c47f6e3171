"""Intervals of means by resampling (Efron, 1979); of pairs, since both ways answered the same questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from arc_halo.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

RESAMPLES: Final = 10_000
_BATCH_ELEMENTS: Final = 4_000_000  # of indexes at a time


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and where it lies.

    Attributes
    ----------
    level
        How often an interval made so holds the true value.
    """

    mean: float
    low: float
    high: float
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether all of it lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap(
    values: np.ndarray,
    *,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    strata: Sequence[Hashable] | np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of values, by the percentile method.

    Parameters
    ----------
    values
        Float of shape [n].
    groups
        What belongs together, such as the tokens of one text, is drawn together: it is not independent.
    strata
        Kinds of which there are as many as was decided, such as domains: each is drawn from for itself. A group belongs
        to one of them.

    Raises
    ------
    FusionError
        There are no values, or one of them is not finite.
    """
    return _resampled(
        values[:, None],
        lambda sums: sums[:, 0] / sums[:, 1],
        groups=groups,
        strata=strata,
        level=level,
        resamples=resamples,
        seed=seed,
    )


def paired_bootstrap(
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    strata: Sequence[Hashable] | np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of ``ours - theirs``, of the same questions in the same order.

    Raises
    ------
    FusionError
        They are not of one length, or not finite.
    """
    if ours.shape != theirs.shape:
        raise FusionError(f"pairs of {ours.shape} and {theirs.shape} are none")
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    return bootstrap(differences, groups=groups, strata=strata, level=level, resamples=resamples, seed=seed)


def bootstrap_ratio(
    numerators: np.ndarray,
    denominators: np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The ratio of two sums over the same items, as of weighted means."""
    both = np.stack([numerators, denominators], axis=1)
    return _resampled(
        both,
        lambda sums: sums[:, 0] / sums[:, 1],
        groups=None,
        strata=None,
        level=level,
        resamples=resamples,
        seed=seed,
    )


def _resampled(
    columns: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    groups: Sequence[Hashable] | np.ndarray | None,
    strata: Sequence[Hashable] | np.ndarray | None,
    level: float,
    resamples: int,
    seed: int,
) -> Interval:
    """Draw groups with replacement; the statistic is one of sums over what was drawn, the last column their number."""
    items = np.asarray(columns, np.float64)
    if not len(items) or not np.isfinite(items).all():
        raise FusionError("an interval needs values, and finite ones")
    items = np.concatenate([items, np.ones((len(items), 1))], axis=1)
    kinds = np.zeros(len(items), np.intp) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
    if groups is not None:
        _, first, member_of = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
        if (kinds[first][member_of] != kinds).any():
            raise FusionError("a group belongs to one stratum, and to no other")
        sums = np.zeros((len(first), items.shape[1]))
        np.add.at(sums, member_of, items)
        items, kinds = sums, kinds[first]
    of_kind = [np.flatnonzero(kinds == kind) for kind in range(kinds.max() + 1)]
    random = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    step = max(1, _BATCH_ELEMENTS // len(items))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = [each[random.integers(len(each), size=(count, len(each)))] for each in of_kind]
        found.append(statistic(items[np.concatenate(drawn, axis=1)].sum(axis=1)))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return Interval(float(statistic(items.sum(axis=0, keepdims=True))[0]), float(low), float(high), level)

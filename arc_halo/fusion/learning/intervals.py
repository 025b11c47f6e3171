"""Intervals of means by resampling (Efron, 1979); of pairs, since both ways answered the same questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, TypedDict, Unpack

import numpy as np

from arc_halo.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

Labels: TypeAlias = "Sequence[Hashable] | np.ndarray"

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


class Resampling(TypedDict, total=False):
    """How an interval is made.

    Attributes
    ----------
    groups
        One label for each value. What belongs together, such as the tokens of one text or answers to one question, is
        drawn together: it is not independent.
    strata
        One label for each value. Kinds of which there are as many as was decided, such as domains: each is drawn from
        for itself. A group belongs to one of them.
    level
        How often the interval shall hold the true value, in (0, 1); by default 0.95.
    resamples
        How often is drawn; by default 10,000.
    seed
        Of the drawing; by default 0.
    """

    groups: Labels | None
    strata: Labels | None
    level: float
    resamples: int
    seed: int


def bootstrap(values: np.ndarray, **how: Unpack[Resampling]) -> Interval:
    """The mean of values, by the percentile method.

    Parameters
    ----------
    values
        Float of shape [n].
    how
        As `Resampling` says.

    Raises
    ------
    FusionError
        There are no values, one of them is not finite, or there are not as many labels.
    """
    return bootstrap_ratio(values, np.ones(np.shape(values)), **how)


def paired_bootstrap(ours: np.ndarray, theirs: np.ndarray, **how: Unpack[Resampling]) -> Interval:
    """The mean of ``ours - theirs``, of the same questions in the same order; shapes and ``how`` as in `bootstrap`.

    Raises
    ------
    FusionError
        They are not of one length, or as in `bootstrap`.
    """
    if ours.shape != theirs.shape:
        raise FusionError(f"pairs of {ours.shape} and {theirs.shape} are none")
    return bootstrap(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64), **how)


def bootstrap_ratio(
    numerators: np.ndarray,
    denominators: np.ndarray,
    *,
    bounds: tuple[float, float] | None = None,
    **how: Unpack[Resampling],
) -> Interval:
    """The ratio of two sums over the same items, as of weighted means, by the percentile method.

    Parameters
    ----------
    numerators, denominators
        Float of shape [n].
    bounds
        Between which the ratio lies in any case; finite. That is all that a resample tells whose denominators add up to
        0: it counts as the lower bound for the interval's lower end, and as the upper one for its upper end.
    how
        As `Resampling` says.

    Raises
    ------
    FusionError
        As `bootstrap`; or denominators add up to 0, and there are no bounds.
    """
    items = np.stack([np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)], axis=-1)
    if items.ndim != 2 or not len(items) or not np.isfinite(items).all():  # noqa: PLR2004  # items, and their two sums
        raise FusionError("an interval needs values, and finite ones")
    items, kinds = _units(items, how.get("groups"), how.get("strata"))
    sums = _resampled(items, kinds, how.get("resamples", RESAMPLES), how.get("seed", 0))
    if bounds is None and not sums[:, 1].all():
        raise FusionError("denominators that were drawn add up to 0, so the ratio needs bounds")
    lowest, highest = bounds or (0.0, 0.0)
    level = how.get("level", 0.95)
    tail = (1 - level) / 2
    low = np.quantile(_ratios(sums, lowest), tail)
    high = np.quantile(_ratios(sums, highest), 1 - tail)
    (mean,) = _ratios(items.sum(axis=0, keepdims=True), np.nan)
    return Interval(float(mean), float(low), float(high), level)


def _ratios(sums: np.ndarray, otherwise: float) -> np.ndarray:
    known = sums[:, 1] != 0
    found: np.ndarray = np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), otherwise), where=known)
    return found


def _units(items: np.ndarray, groups: Labels | None, strata: Labels | None) -> tuple[np.ndarray, np.ndarray]:
    """What is drawn, items or sums of groups, and the stratum of each."""
    kinds = np.zeros(len(items), np.intp) if strata is None else _numbers(strata, len(items), "strata")
    if groups is None:
        return items, kinds
    member_of = _numbers(groups, len(items), "groups")
    _, first = np.unique(member_of, return_index=True)
    if (kinds[first][member_of] != kinds).any():
        raise FusionError("a group belongs to one stratum, and to no other")
    sums = np.zeros((len(first), items.shape[1]))
    np.add.at(sums, member_of, items)
    return sums, kinds[first]


def _numbers(labels: Labels, count: int, what: str) -> np.ndarray:
    """Each label's number, from 0 on."""
    if len(labels) != count:
        raise FusionError(f"there are {len(labels)} {what} for {count} values: each value has one")
    if isinstance(labels, np.ndarray):
        numbers: np.ndarray = np.unique(labels, return_inverse=True)[1]
        return numbers
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(each, len(known)) for each in labels], np.intp)


def _resampled(items: np.ndarray, kinds: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums over items that were drawn with replacement, as many of each kind as there are: [resamples, columns]."""
    of_kind = [np.flatnonzero(kinds == kind) for kind in range(kinds.max() + 1)]
    random = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    step = max(1, _BATCH_ELEMENTS // len(items))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = [each[random.integers(len(each), size=(count, len(each)))] for each in of_kind]
        found.append(items[np.concatenate(drawn, axis=1)].sum(axis=1))
    return np.concatenate(found)

"""Pruning by magnitude: single numbers, N of every M, whole rows, or given slices set to zero."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from arc_halo.errors import ConfigurationError, TensorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_LOW_BITS: Final = 15
_BINS: Final = 1 << 16


def share(sparsity: float, count: int) -> int:
    """How many of so many are to be zero: the nearest whole number."""
    return round(sparsity * count)


def check_sparsity(sparsity: float) -> None:
    """Raise `ConfigurationError` for what is no share between nothing and all."""
    if 1 < sparsity < 100:  # noqa: PLR2004  per cent
        raise ConfigurationError(
            f"a sparsity is a share between 0 and 1, not {sparsity:g}; did you mean {sparsity / 100:g}?"
        )
    if not 0 < sparsity < 1:
        raise ConfigurationError(f"a sparsity of {sparsity} prunes nothing or everything; give one between 0 and 1")


class Pruner(Protocol):
    """What decides which numbers of a tensor become zero."""

    def prune(self, block: np.ndarray, first_row: int = 0) -> np.ndarray:
        """A copy of a block of whole rows, the first of which has that number, with those numbers zero."""


@dataclass(slots=True)
class Threshold:
    """Up to which magnitude numbers become zero.

    ``bits`` are those of a float32 without its sign, which sort as magnitudes do. Of the numbers that have exactly
    this magnitude the first ``ties`` that `prune` meets are pruned, so that the sparsity is exact.
    """

    bits: int
    ties: int

    def prune(self, block: np.ndarray, first_row: int = 0) -> np.ndarray:  # noqa: ARG002  # `ties` knows the place
        """A copy with the smallest numbers zero; blocks come in the order in which they were counted."""
        magnitudes = _magnitudes(block)
        is_pruned = magnitudes < self.bits
        at = np.flatnonzero(magnitudes == self.bits)[: self.ties]
        self.ties -= at.size
        is_pruned[at] = True
        return np.where(is_pruned.reshape(block.shape), block.dtype.type(0), block)


def find_threshold(blocks: Callable[[], Iterable[np.ndarray]], count: int) -> Threshold:
    """The threshold below which so many numbers lie.

    A radix selection: two passes over the blocks count the upper 16 bits of magnitudes, then the lower 15 of those
    that share the bin where the threshold is. It is exact, and its memory does not depend on how many there are.
    NaN and infinity are larger than all numbers. Numbers are compared as float32.

    Parameters
    ----------
    blocks
        Called twice; arrays of floats.
    """
    upper = np.zeros(_BINS, np.int64)
    for block in blocks():
        upper += np.bincount(_magnitudes(block) >> _LOW_BITS, minlength=_BINS)
    high, rest = _bin_of(upper, count)
    lower = np.zeros(1 << _LOW_BITS, np.int64)
    for block in blocks():
        magnitudes = _magnitudes(block)
        inside = magnitudes[magnitudes >> _LOW_BITS == high] & ((1 << _LOW_BITS) - 1)
        lower += np.bincount(inside, minlength=1 << _LOW_BITS)
    low, ties = _bin_of(lower, rest)
    return Threshold(high << _LOW_BITS | low, ties)


def prune_smallest(array: np.ndarray, sparsity: float) -> np.ndarray:
    """A copy of which that share is zero, the numbers of the smallest magnitude.

    Raises
    ------
    ConfigurationError
        The sparsity is not between 0 and 1.
    """
    check_sparsity(sparsity)
    return find_threshold(lambda: [array], share(sparsity, array.size)).prune(array)


def _bin_of(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """The bin in which a running count reaches so many, and how many of that bin it takes."""
    running = np.cumsum(counts)
    index = int(np.searchsorted(running, wanted))
    return index, wanted - int(running[index] - counts[index])


def _magnitudes(block: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(block, np.float32).reshape(-1)
    magnitudes: np.ndarray = numbers.view(np.uint32) & np.uint32(0x7FFFFFFF)
    return magnitudes


@dataclass(frozen=True, slots=True)
class Pattern:
    """At most ``kept`` of every ``group`` numbers along the last axis are not zero, as sparse tensor cores want it."""

    kept: int
    group: int

    @classmethod
    def of(cls, text: str) -> Pattern:
        """From ``"2:4"``.

        Raises
        ------
        ConfigurationError
            It is no such pattern.
        """
        match = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", text)
        if match is None or int(match[1]) >= int(match[2]):
            raise ConfigurationError(f"{text!r} is no pattern; write one as 2:4, which keeps 2 of every 4 numbers")
        return cls(int(match[1]), int(match[2]))

    @property
    def sparsity(self) -> float:
        """The share that is zero."""
        return 1 - self.kept / self.group

    def prune(self, block: np.ndarray, first_row: int = 0) -> np.ndarray:  # noqa: ARG002  # alike in every row
        """A copy with the smallest magnitudes of each group zero; of equal ones the first.

        Raises
        ------
        TensorError
            The last axis is not made of whole groups.
        """
        if not block.shape or block.shape[-1] % self.group:
            raise TensorError(f"rows of a block of {list(block.shape)} are not made of groups of {self.group}")
        groups = _magnitudes(block).reshape(-1, self.group)
        order = np.argsort(groups, axis=1, kind="stable")
        is_pruned = np.zeros(groups.shape, np.bool_)
        np.put_along_axis(is_pruned, order[:, : self.group - self.kept], values=True, axis=1)
        return np.where(is_pruned.reshape(block.shape), block.dtype.type(0), block)


class Mask:
    """Whole rows and columns of a matrix that are to be zero; none at first."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows = np.zeros(rows, np.bool_)
        self.columns = np.zeros(columns, np.bool_)

    def add(self, axis: int, start: int, stop: int) -> None:
        """Take in rows (axis 0) or columns (axis 1) from start to stop."""
        (self.columns if axis else self.rows)[start:stop] = True

    def prune(self, block: np.ndarray, first_row: int = 0) -> np.ndarray:
        """A copy of a block of whole rows, the first of which has that number, with the masked ones zero."""
        pruned = block.copy()
        pruned[self.rows[first_row : first_row + len(block)]] = 0
        pruned[:, self.columns] = 0
        return pruned


class Energy:
    """Sums of squares of each row and each column of a matrix that is seen in blocks of rows; NaN is infinite."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows = np.zeros(rows)
        self.columns = np.zeros(columns)

    def add(self, block: np.ndarray, first_row: int) -> None:
        """Take in a block of rows, the first of which has that number."""
        with np.errstate(over="ignore"):
            squares = np.square(block.astype(np.float64))
        squares[np.isnan(squares)] = np.inf
        self.rows[first_row : first_row + len(block)] = squares.sum(axis=1)
        self.columns += squares.sum(axis=0)

    def within(self, axis: int, start: int, stop: int) -> float:
        """That of rows (axis 0) or columns (axis 1) from start to stop."""
        return float((self.columns if axis else self.rows)[start:stop].sum())


def smallest(scores: np.ndarray, count: int) -> np.ndarray:
    """Indexes of so many scores, the smallest; of equal ones the first."""
    chosen: np.ndarray = np.sort(np.argsort(scores, kind="stable")[:count])
    return chosen

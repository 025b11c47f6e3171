"""Numbers chosen by their rank among all of a tensor, without sorting it or holding it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_LOW_BITS: Final = 15
_BINS: Final = 1 << 16
PASSES: Final = 2
"""How often blocks are looked at to find thresholds."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which numbers are kept when a tensor is sorted by magnitude: from ``first`` on, without ``stop``."""

    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Bound:
    """A rank as a magnitude, and how many numbers of exactly that magnitude rank below it."""

    bits: int
    ties: int


@dataclass(frozen=True, slots=True)
class Between:
    """Keeps the numbers between two bounds; see `find_between`."""

    first: _Bound
    stop: _Bound

    def begin(self) -> Callable[[np.ndarray], np.ndarray]:
        """What tells of one block after the other, from the first number on, which are kept."""
        below = _Below(self.first), _Below(self.stop)

        def keep(numbers: np.ndarray) -> np.ndarray:
            bits = magnitude_bits(numbers)
            kept: np.ndarray = ~below[0].of(bits) & below[1].of(bits)
            return kept

        return keep


def find_between(blocks: Callable[[], Iterable[Sequence[np.ndarray]]], ranks: Sequence[Ranks]) -> list[Between]:
    """Bounds of ranks in several tensors of one size, whose blocks come side by side.

    mergekit sorts a whole tensor of float32 magnitudes. The bits of those sort as the magnitudes do, so two passes of
    counting find the very numbers that a sort would: one counts the upper 16 bits, the other the lower 15 within the
    bin where a bound lies. It is exact, and its memory does not depend on the size of the tensor.

    Of numbers of equal magnitude at a bound those that come first rank lowest. mergekit's sort is not stable: which of
    them it keeps is not defined there, only how many.

    Parameters
    ----------
    blocks
        Called twice.
    """
    wanted = [[each.first, each.stop] for each in ranks]
    upper = [np.zeros(_BINS, np.int64) for _ in ranks]
    for block in blocks():
        for tensor, numbers in enumerate(block):
            upper[tensor] += np.bincount(magnitude_bits(numbers) >> _LOW_BITS, minlength=_BINS)
    bins = [[_bin_of(counts, rank) for rank in pair] for counts, pair in zip(upper, wanted, strict=True)]
    lower = [[np.zeros(1 << _LOW_BITS, np.int64) for _ in pair] for pair in wanted]
    for block in blocks():
        for tensor, numbers in enumerate(block):
            bits = magnitude_bits(numbers)
            for bound, (high, _) in enumerate(bins[tensor]):
                inside = bits[bits >> _LOW_BITS == high] & ((1 << _LOW_BITS) - 1)
                lower[tensor][bound] += np.bincount(inside, minlength=1 << _LOW_BITS)
    found = []
    for pair, counted in zip(bins, lower, strict=True):
        bounds = []
        for (high, rest), counts in zip(pair, counted, strict=True):
            low, ties = _bin_of(counts, rest)
            bounds.append(_Bound(high << _LOW_BITS | low, ties))
        found.append(Between(*bounds))
    return found


def magnitude_bits(numbers: np.ndarray) -> np.ndarray:
    """The bits of float32 without their sign, as uint32 of shape (n,)."""
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(numbers, np.float32).reshape(-1)
    bits: np.ndarray = single.view(np.uint32) & np.uint32(0x7FFFFFFF)
    return bits


def _bin_of(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """The bin in which a running count reaches so many, and how many of that bin it takes."""
    running = np.cumsum(counts)
    index = int(np.searchsorted(running, wanted))
    return index, wanted - int(running[index] - counts[index])


class _Below:
    """Tells which numbers rank below a bound, block by block."""

    def __init__(self, bound: _Bound) -> None:
        self._bits = bound.bits
        self._ties = bound.ties

    def of(self, bits: np.ndarray) -> np.ndarray:
        is_below: np.ndarray = bits < self._bits
        at = np.flatnonzero(bits == self._bits)[: self._ties]
        self._ties -= at.size
        is_below[at] = True
        return is_below

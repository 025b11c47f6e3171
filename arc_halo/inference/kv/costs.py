"""Load or recompute: what reading and computing were measured to take, and where they break even."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Final

_WEIGHT: Final = 0.3
"""Of the newest measurement in a running mean: a few calls follow a machine whose load has changed."""
RECHECK_EVERY: Final = 20
"""Where recomputing is the cheaper way, one hit in so many is read all the same, so that this is not for ever."""


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Reading keys and values beside computing them anew; None where that was not measured yet.

    Parameters
    ----------
    token_nbytes
        Bytes of keys and values of one token.
    read_nbytes_per_second
        At which payloads came from the database, checked and in place.
    computed_tokens_per_second
        At which a prompt was computed.
    """

    token_nbytes: int
    read_nbytes_per_second: float | None = None
    computed_tokens_per_second: float | None = None

    @property
    def nbytes_per_second(self) -> float | None:
        """The bandwidth above which reading is the faster way."""
        rate = self.computed_tokens_per_second
        return None if rate is None else rate * self.token_nbytes

    @property
    def reads(self) -> bool:
        """Whether to read; true as long as one of both is unknown."""
        if self.read_nbytes_per_second is None or self.nbytes_per_second is None:
            return True
        return self.read_nbytes_per_second >= self.nbytes_per_second

    def seconds_saved(self, token_count: int) -> float | None:
        """What reading so many tokens saves; negative where computing is faster."""
        if self.read_nbytes_per_second is None or self.computed_tokens_per_second is None:
            return None
        read = token_count * self.token_nbytes / self.read_nbytes_per_second
        return token_count / self.computed_tokens_per_second - read

    def __str__(self) -> str:
        if self.nbytes_per_second is None or self.read_nbytes_per_second is None:
            return "break-even not measured yet"
        way = "read" if self.reads else "recompute"
        return (
            f"break-even {self.nbytes_per_second / 1e6:,.0f} MB/s, read at {self.read_nbytes_per_second / 1e6:,.0f} "
            f"MB/s: {way}"
        )


class Costs:
    """Running means of what this process measured; threads share it."""

    def __init__(self, measured: BreakEven) -> None:
        self._measured = measured
        self._lock = Lock()
        self._skipped = 0

    @property
    def break_even(self) -> BreakEven:
        """As measured so far."""
        return self._measured

    def note_read(self, nbytes: int, seconds: float) -> None:
        """Take a measurement of reading."""
        with self._lock:
            rate = _mean(self._measured.read_nbytes_per_second, nbytes / max(seconds, 1e-9))
            self._measured = BreakEven(self._measured.token_nbytes, rate, self._measured.computed_tokens_per_second)

    def note_computed(self, token_count: int, seconds: float) -> None:
        """Take a measurement of computing."""
        with self._lock:
            rate = _mean(self._measured.computed_tokens_per_second, token_count / max(seconds, 1e-9))
            self._measured = BreakEven(self._measured.token_nbytes, self._measured.read_nbytes_per_second, rate)

    def reads(self) -> bool:
        """Whether to read the next hit."""
        with self._lock:
            if self._measured.reads:
                return True
            self._skipped += 1
            return self._skipped % RECHECK_EVERY == 0


def _mean(before: float | None, newest: float) -> float:
    return newest if before is None else before + _WEIGHT * (newest - before)

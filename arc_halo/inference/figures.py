"""Figures of one request as they are stored, checked where they are given, and the clock their times are by."""

from __future__ import annotations

import datetime as dt
import math
import operator
import sys
import time
from typing import Final, NamedTuple, SupportsIndex

import psutil  # type: ignore[import-untyped]  # ships no types

from arc_halo.errors import MetricError

if sys.platform != "win32":
    import resource

MAX_TOKENS: Final = 2**31 - 1
_MAX_NBYTES: Final = 2**63 - 1


class RequestFigures(NamedTuple):
    """A row of ``inference_metrics``, its fields in the order of the statement that stores them."""

    request_number: int
    recorded_at: dt.datetime
    latency_seconds: float
    time_to_first_token_seconds: float | None
    tokens_per_second: float | None
    prompt_token_count: int | None
    generated_token_count: int | None
    cached_token_count: int | None
    memory_nbytes: int | None


class DatabaseClock:
    """The database's time, told without asking: as it was read last, and what passed here since.

    A machine that sleeps does not count it, so the time is read anew with every batch that is stored.
    """

    def __init__(self, now: dt.datetime) -> None:
        self.set(now)

    def set(self, now: dt.datetime) -> None:
        """Take what the database has just said."""
        self._reading = now, time.monotonic()  # one assignment: other threads see both or neither

    def now(self) -> dt.datetime:
        """By the database's clock."""
        then, at = self._reading
        return then + dt.timedelta(seconds=time.monotonic() - at)


def peak_memory_nbytes() -> int:
    """Most bytes of memory this process ever had at once; its devices have their own."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # elsewhere the kernel counts KiB: getrusage(2)


def token_rate(
    generated_token_count: int | None, latency_seconds: float, time_to_first_token_seconds: float | None
) -> float | None:
    """Tokens per second after the first; None where that says nothing."""
    if generated_token_count is None or generated_token_count <= 1 or time_to_first_token_seconds is None:
        return None
    seconds = latency_seconds - time_to_first_token_seconds
    return (generated_token_count - 1) / seconds if seconds > 0 else None


def checked_count(what: str, count: SupportsIndex | None, most: int = MAX_TOKENS) -> int | None:
    """A whole number from 0 on, numpy's included, as an ``int``."""
    if count is None:
        return None
    try:
        number = operator.index(count)
    except TypeError:
        number = -1
    if not 0 <= number <= most:
        raise MetricError(f"{what} is a whole number from 0 to {most}, not {count!r:.80}")
    return number


def checked_nbytes(what: str, nbytes: SupportsIndex | None) -> int | None:
    """The same of bytes."""
    return checked_count(what, nbytes, _MAX_NBYTES)


def checked_number(what: str, value: float) -> float:
    """A finite number from 0 on, as a ``float``."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise MetricError(f"{what} is a finite number from 0 on, not {value!r:.80}")
    return number


def checked_tokens(prompt: SupportsIndex | None, cached: SupportsIndex | None) -> tuple[int | None, int | None]:
    """Tokens of the prompt, and how many of these came from the cache."""
    prompt, cached = checked_count("prompt_token_count", prompt), checked_count("cached_token_count", cached)
    if prompt is not None and cached is not None and cached > prompt:
        raise MetricError(f"{cached} tokens of a prompt of {prompt} cannot come from the cache")
    return prompt, cached

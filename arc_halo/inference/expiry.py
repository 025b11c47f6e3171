"""How long cached content lives, by the database's clock."""

from __future__ import annotations

import datetime as dt
from typing import Final

import numpy as np

from arc_halo.errors import CacheError

_MAX_SECONDS: Final = 100 * 365.25 * 24 * 3600
"""What PostgreSQL can add to a time of now, for sure."""


def ttl_seconds(ttl: dt.timedelta | float | None) -> float | None:
    """Seconds to live; None for content that stays as long as there is room.

    Raises
    ------
    CacheError
        It is not above zero, NaN, more than a hundred years, or no length of time. A moment (`datetime`) is none: this
        machine's clock may differ from the database's.
    """
    if ttl is None:
        return None
    seconds = ttl.total_seconds() if isinstance(ttl, dt.timedelta) else ttl
    if isinstance(seconds, bool) or not isinstance(seconds, int | float | np.integer | np.floating):
        raise CacheError(f"a ttl is a timedelta or a number of seconds, not {type(ttl).__name__}")
    if not 0 < seconds <= _MAX_SECONDS:  # NaN is not, either
        raise CacheError(f"a ttl is above 0 s and at most a hundred years, not {ttl}; None keeps while there is room")
    return float(seconds)

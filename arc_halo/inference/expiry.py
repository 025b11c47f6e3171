"""How long cached content lives, by the database's clock."""

from __future__ import annotations

import datetime as dt
import math

from arc_halo.errors import CacheError


def ttl_seconds(ttl: dt.timedelta | float | None) -> float | None:
    """Seconds to live; None for content that does not expire.

    Raises
    ------
    CacheError
        It is no positive, finite length of time. A moment (`datetime`) is none: this machine's clock may differ from
        the database's.
    """
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, dt.timedelta | int | float):
        raise CacheError(f"ttl {ttl!r} is no length of time: give seconds, or a timedelta")
    seconds = ttl.total_seconds() if isinstance(ttl, dt.timedelta) else float(ttl)
    if not (math.isfinite(seconds) and seconds > 0):
        raise CacheError(f"ttl {ttl!r} must be positive and finite; None is for content that does not expire")
    return seconds

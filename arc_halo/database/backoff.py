"""How long to wait before trying again: exponential with full jitter."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST_SECONDS: Final = 0.25
LONGEST_SECONDS: Final = 4.0


def delays(attempts: int) -> Iterator[float]:
    """The ``attempts - 1`` waits, in seconds, between that many attempts.

    Each is drawn uniformly below a ceiling that doubles, so clients that failed together do not return together
    ("full jitter": Brooker, *Exponential Backoff And Jitter*, 2015).
    """
    for retry in range(attempts - 1):
        yield random.uniform(0.0, min(LONGEST_SECONDS, FIRST_SECONDS * 2**retry))  # noqa: S311  no secret is drawn

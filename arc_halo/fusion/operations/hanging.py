"""Calls that nobody waits for any more, and that go on nevertheless: no thread can be stopped from outside."""

from __future__ import annotations

import threading
from typing import Final

# By id: the threads that hang hold on to what they call, so that nothing else gets its id meanwhile.
_counts: dict[int, int] = {}
_lock: Final = threading.Lock()


def count_of(inner: object) -> int:
    """How many calls of it hang."""
    return _counts.get(id(inner), 0)


def abandon(inner: object) -> None:
    """A call of it is not waited for any more."""
    with _lock:
        _counts[id(inner)] = _counts.get(id(inner), 0) + 1


def forget(inner: object) -> None:
    """A call that was abandoned has ended after all."""
    with _lock:
        left = _counts.pop(id(inner), 1) - 1
        if left > 0:
            _counts[id(inner)] = left

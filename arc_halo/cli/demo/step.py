"""A step of the demo: said, done, timed."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from arc_halo.cli.output import console, say

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def step(title: str, explanation: str) -> Iterator[None]:
    """Say what will be done and why, and afterwards how long it took."""
    say("\n", (title, "bold cyan"))
    console().print(explanation)
    begun = time.monotonic()
    yield
    say((f"({time.monotonic() - begun:.1f} s)", "dim"))

"""Progress of long work on the terminal: bytes and bytes per second, rows, or how many so far."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from arc_halo.cli.output import console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LABELS: Final = {
    "download": "loading", "hash": "reading", "store": "storing", "embed": "embedding", "write": "writing",
    "verify": "checking", "measure": "measuring", "quantize": "quantising", "dequantize": "restoring",
    "prune": "pruning", "merge": "merging", "compare": "comparing", "load": "loading", "repack": "repacking",
    "migrate": "moving", "clone": "cloning",
}  # fmt: skip


@contextmanager
def progress_bars(*, silent: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A callback that draws one bar per phase on stderr; None where nobody would see it."""
    screen = console(stderr=True)
    if silent or not screen.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=screen, transient=True) as bars:

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(_LABELS.get(phase, phase), total=total)
            bars.update(tasks[phase], completed=done)

        yield report


@contextmanager
def progress_rows(doing: str, *, silent: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A callback that draws one bar on stderr for rows done of all; None where nobody would see it."""
    screen = console(stderr=True)
    if silent or not screen.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as bars:
        task = bars.add_task(doing, total=None)

        def report(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield report


@contextmanager
def progress_count(doing: str, *, silent: bool) -> Iterator[Callable[[int], None] | None]:
    """A callback that shows on stderr how many there were so far; None where nobody would see it."""
    screen = console(stderr=True)
    if silent or not screen.is_terminal:
        yield None
        return
    with screen.status(doing) as line:

        def report(done: int) -> None:
            line.update(f"{doing}: {done:,}")

        yield report

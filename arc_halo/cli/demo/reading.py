"""Whole models read: into memory, by map, and to compare every byte."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from arc_halo.cli.demo.step import step
from arc_halo.cli.output import count, say, shown, size
from arc_halo.cli.progress import progress_bars
from arc_halo.errors import CorruptionError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sqlalchemy.orm import Session

    from arc_halo.schema import Model
    from arc_halo.store import Fault

_CACHE_NBYTES: Final = 20_000_000_000


def load_twice(session: Session, model: Model, folder: Path) -> None:
    """By a new cache, so that the first time is one."""
    from arc_halo.registry import load_model
    from arc_halo.store.cache import ReadCache

    with step(
        "11  Loaded twice",
        "The first load decodes, compares digests and leaves files; the second is a memory map of these.",
    ):
        cache, seconds = ReadCache(folder, _CACHE_NBYTES), []
        for _ in range(2):
            begun = time.perf_counter()
            arrays = load_model(session, model.id, cache=cache)
            seconds.append(time.perf_counter() - begun)
        first, second = (f"{1000 * each:,.0f} ms" for each in seconds)
        nbytes = sum(array.nbytes for array in arrays.values())
        say(f"{count(len(arrays), 'tensor')}, {size(nbytes)}: {first}, then ", (second, "bold"))


def verify(session: Session, models: Sequence[Model]) -> None:
    """Read every stored byte of all of them."""
    from arc_halo.registry import check_model

    with step("13  Verified", "Every stored byte is read and compared with the digest under which it was written."):
        faults: list[Fault] = []
        for model in models:
            with progress_bars(silent=False) as progress:
                faults += check_model(session, model.id, progress=progress)
        for fault in faults:
            say((shown(fault.message), "red"))
        if faults:
            raise CorruptionError(f"{count(len(faults), 'fault')} in what was just stored; look at the disk")
        say(f"{count(len(models), 'version')} of {shown(models[0].name)}: sound")

"""``arc-halo prune``: free what nothing refers to."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Final

import typer

from arc_halo.cli.output import Json, count, print_json, say, size

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_PERIOD: Final = re.compile(r"0|([0-9]+)([smhd])")


def period(text: str) -> dt.timedelta:
    """``90s``, ``30m``, ``24h``, ``7d`` or ``0``."""
    matched = _PERIOD.fullmatch(text)
    try:
        if matched:
            return dt.timedelta(seconds=int(matched[1] or 0) * _UNITS[matched[2] or "s"])
    except OverflowError:
        pass  # said like any other that is no period
    raise typer.BadParameter(f"{text!r} is no period: write 0, 90s, 30m, 24h or 7d")


def prune(
    context: typer.Context,
    *,
    grace: Annotated[
        dt.timedelta,
        typer.Option(
            parser=period, metavar="PERIOD", help="Keep what is younger: longer than the longest import takes."
        ),
    ] = "24h",  # type: ignore[assignment]  # Typer parses it
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    json: Json = False,
) -> None:
    """Free the tensors and chunks that no model uses any more.

    It runs beside imports: what one of them relies on is younger than the
    grace period, and what is referred to cannot be deleted.

    Example: arc-halo prune --grace 7d --dry-run
    """
    from arc_halo.store import prune as prune_store
    from arc_halo.store.blobs import open_store

    with context.obj.connect() as database:
        blobs = None if database.blob_url is None else open_store(database.blob_url)
        pruned = prune_store(database.engine, blobs=blobs, grace=grace, dry_run=dry_run)
    if json:
        print_json(
            {
                "tensors": pruned.tensors,
                "chunks": pruned.chunks,
                "stored_nbytes": pruned.stored_nbytes,
                "dry_run": dry_run,
            }
        )
    else:
        would = "would free" if dry_run else "freed"
        say(f"{would} {count(pruned.tensors, 'tensor')}, {count(pruned.chunks, 'chunk')}, {size(pruned.stored_nbytes)}")

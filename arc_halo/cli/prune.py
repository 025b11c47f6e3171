"""``arc-halo prune``: free what nothing refers to."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import datetime as dt
import re
import uuid  # noqa: TC003  Typer evaluates the annotations
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from arc_halo.cli.output import Json, count, print_json, say, size

if TYPE_CHECKING:
    from arc_halo.store.leases import UploadUnderWay

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
    release: Annotated[
        list[uuid.UUID] | None,
        typer.Option(metavar="LEASE", help="End the lease of an upload that was killed, as an earlier run named it."),
    ] = None,
    json: Json = False,
) -> None:
    """Free the tensors and chunks that no model uses any more.

    No model changes. (To make a sparser version of one is another thing:
    arc-halo model prune.)

    It runs beside imports: what one of them relies on is younger than the
    grace period, and what is referred to cannot be deleted. Content stays
    as long as an upload that began before is under way; those are named.

    Example: arc-halo prune --grace 7d --dry-run
    """
    from arc_halo.store import prune as prune_store
    from arc_halo.store.blobs import open_store
    from arc_halo.store.leases import release_lease

    with context.obj.connect() as database:
        for lease_id in release or ():
            release_lease(database.engine, lease_id)
        blobs = None if database.blob_url is None else open_store(database.blob_url)
        pruned = prune_store(database.engine, blobs=blobs, grace=grace, dry_run=dry_run)
    if json:
        print_json(
            {
                "tensors": pruned.tensors,
                "chunks": pruned.chunks,
                "stored_nbytes": pruned.stored_nbytes,
                "dry_run": dry_run,
                "held_up_by": [_fields(upload) for upload in pruned.held_up_by],
            }
        )
    else:
        would = "would free" if dry_run else "freed"
        say(f"{would} {count(pruned.tensors, 'tensor')}, {count(pruned.chunks, 'chunk')}, {size(pruned.stored_nbytes)}")
        for upload in pruned.held_up_by:
            say(_sentence(upload))


def _fields(upload: UploadUnderWay) -> dict[str, Any]:
    return {
        "lease": str(upload.id),
        "process": upload.description,
        "nbytes": upload.nbytes,
        "since": upload.started_at.isoformat(),
        "until": upload.expires_at.isoformat(),
        "is_alive": upload.is_alive,
    }


def _sentence(upload: UploadUnderWay) -> str:
    """Who holds content back, since when, and what to do about it."""
    held = f"held up by an upload of {size(upload.nbytes)} from {upload.description} since {_time(upload.started_at)}"
    if upload.is_alive:
        return f"{held}, which is alive"
    return f"{held}, until {_time(upload.expires_at)} if it was killed, or: arc-halo prune --release {upload.id}"


def _time(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

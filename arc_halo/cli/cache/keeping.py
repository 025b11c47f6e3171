"""Caches swept and cleared."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from arc_halo.cli.cache.application import ENTRIES, Kind, app
from arc_halo.cli.output import Json, confirm, count, print_json, say, shown, size
from arc_halo.cli.progress import progress_count

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


@app.command("sweep")
def sweep(
    context: typer.Context,
    *,
    batch: Annotated[int, typer.Option(min=1, help="Entries of each cache in one transaction.")] = 1000,
    json: Json = False,
) -> None:
    """Delete what expired, what no model may be served any more, and what is beyond a quota.

    Example: arc-halo cache sweep
    """
    from arc_halo.inference.sweeping import sweep_caches

    with context.obj.connect() as database, progress_count("sweeping", silent=json) as progress:
        swept = sweep_caches(database, batch=batch, progress=progress)
    if json:
        print_json(asdict(swept))
        return
    counts = (swept.kv_cache_count, swept.activation_cache_count, swept.response_cache_count)
    gone = [count(number, noun) for number, noun in zip(counts, ENTRIES.values(), strict=True) if number]
    if swept.evicted_count:
        gone.append(f"{swept.evicted_count:,} beyond a quota")
    say(f"deleted {', '.join(gone)}" if gone else "nothing to delete")


@app.command("clear")
def clear(
    context: typer.Context,
    *,
    kind: Annotated[Kind | None, typer.Option(help="This cache alone.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="What the weights of this version computed: NAME (its newest), NAME@VERSION or NAME@ALIAS."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Delete all that is cached, pinned or not; nothing that is there now is served after it.

    Example: arc-halo cache clear --kind kv --model demo --yes
    """
    from arc_halo.inference.kv.keeping import clear_caches
    from arc_halo.inference.namespaces import weights_of_version

    with context.obj.connect() as database:
        with database.session() as session:
            digest = None if model is None else weights_of_version(session, model)[1]
            entries, nbytes = _held(session, kind, digest)
        told = "1 entry" if entries == 1 else f"{entries:,} entries"
        if not yes:
            whose = "" if model is None else f" with the weights of {shown(model)}"
            confirm(f"Delete {told} ({size(nbytes)}) of {'all caches' if kind is None else kind}{whose}?")
        cleared = database.transaction(lambda session: clear_caches(session, kind=kind, weights_digest=digest))
    if json:
        print_json({"namespace_count": cleared, "entry_count": entries, "stored_nbytes": nbytes})
    else:
        say(f"deleted {told} of {count(cleared, 'namespace')}, {size(nbytes)}")


def _held(session: Session, kind: Kind | None, weights_digest: bytes | None) -> tuple[int, int]:
    """Entries and bytes of what is to go."""
    from sqlalchemy import select

    from arc_halo.schema import CacheStatus
    from arc_halo.schema.columns import TENANT_ID

    held = select(CacheStatus.entry_count, CacheStatus.stored_nbytes).where(CacheStatus.tenant_id == TENANT_ID)
    if kind is not None:
        held = held.where(CacheStatus.kind == kind)
    if weights_digest is not None:
        held = held.where(CacheStatus.weights_digest == weights_digest)
    rows = session.execute(held).all()
    return sum(row[0] for row in rows), sum(row[1] for row in rows)

"""``arc-halo blobs``: payloads in an object store, moved and swept."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)
# ruff: noqa: TC003  (Typer evaluates the annotations of commands)

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arc_halo.cli.output import Json, count, print_json, print_table, say, shown, size
from arc_halo.cli.progress import progress_bars
from arc_halo.cli.prune import period
from arc_halo.errors import BlobStoreNotConfigured

if TYPE_CHECKING:
    from arc_halo.database import Database
    from arc_halo.store.blobs import BlobStore

app = typer.Typer(no_args_is_help=True, help="Payloads in an object store: where they are, moved, swept.")


@app.command("status")
def status(context: typer.Context, *, json: Json = False) -> None:
    """Show how many payloads are in the database, and how many in the blob store.

    Example: arc-halo blobs status
    """
    from sqlalchemy import text

    with context.obj.connect() as database, database.session() as session:
        rows = session.execute(text(_STATUS)).mappings().all()
        waiting = session.scalar(text("SELECT count(*) FROM arc_halo.blob_deletions")) or 0
        store = None if database.blob_url is None else _store(database)
    places: list[dict[str, Any]] = [dict(row) for row in rows]
    if store is not None and waiting + sum(each["payloads"] for each in places if each["place"] == "blob store"):
        store.require()
    if json:
        print_json({"store": store and store.name, "places": places, "objects_to_delete": waiting})
        return
    if store is None:
        say("no blob store is configured; ARC_HALO_BLOB_URL names one")
    else:
        say(f"blob store: {shown(store.name)}{'' if store.is_there else ', which the first payload makes'}")
    table = [(each["place"], each["payloads"], size(each["nbytes"])) for each in places]
    print_table(["payloads in", "payloads", "size"], table, right=["payloads", "size"])
    if waiting:
        say(f"{count(waiting, 'object')} no longer needed; arc-halo blobs sweep deletes them")


_STATUS = """
SELECT p.place, count(d.digest) AS payloads, coalesce(sum(d.stored_nbytes), 0)::bigint AS nbytes
  FROM (VALUES ('database', true), ('blob store', false)) AS p (place, is_database)
  LEFT JOIN arc_halo.tensor_data AS d ON (d.blob_location IS NULL) = p.is_database
 GROUP BY p.place, p.is_database ORDER BY p.is_database DESC
"""


@app.command("migrate")
def migrate(
    context: typer.Context,
    to: Annotated[Literal["blobs", "database"], typer.Argument(metavar="TO", help="blobs or database.")],
    model: Annotated[str | None, typer.Option(help="Only the chunks of this model; all by default.")] = None,
    *,
    json: Json = False,
) -> None:
    """Move payloads into the blob store or back, while both are in use.

    Interrupted, it goes on where it was when it is run again.

    Example: arc-halo blobs migrate blobs
    """
    from arc_halo.registry import find_model
    from arc_halo.store import Meter
    from arc_halo.store.migrate import migrate_payloads

    with context.obj.connect() as database, progress_bars(silent=json) as progress:
        store = _store(database)
        with database.session() as session:
            model_id = None if model is None else find_model(session, model).id
        meter = Meter(progress, "migrate", 0)
        moved = migrate_payloads(database.engine, store, to, meter, model_id=model_id)
    if json:
        print_json({"to": to, "payloads": moved.payloads, "nbytes": moved.nbytes})
    else:
        say(f"moved {count(moved.payloads, 'payload')}, {size(moved.nbytes)}, to the {_NAMES[to]}")


_NAMES = {"blobs": "blob store", "database": "database"}


@app.command("sweep")
def sweep(
    context: typer.Context,
    *,
    grace: Annotated[
        dt.timedelta,
        typer.Option(parser=period, metavar="PERIOD", help="Keep what is younger: readers may be at it."),
    ] = "1h",  # type: ignore[assignment]  # Typer parses it
    formerly: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Take objects of this database, which no server has any more, for ours."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    json: Json = False,
) -> None:
    """Delete objects that no payload needs any more, or that never had a row.

    It runs beside imports and readers. What is not ours in the store is left, and so is what other databases put there.

    Example: arc-halo blobs sweep --dry-run
    """
    from arc_halo.store.sweep import sweep as sweep_store

    with context.obj.connect() as database:
        swept = sweep_store(database.engine, _store(database), grace=grace, dry_run=dry_run, formerly=formerly or ())
    if json:
        print_json(swept)
        return
    would = "would delete" if dry_run else "deleted"
    say(
        f"{would} {count(swept.requested, 'object')} no longer needed and {count(swept.orphans, 'orphan')} "
        f"({size(swept.orphan_nbytes)})"
    )
    for owner, number in sorted(swept.others.items()):
        say(f"left {count(number, 'object')} of database {owner}; if this one was moved from there: --formerly {owner}")
    if swept.foreign:
        say(f"left {count(swept.foreign, 'object')} that no payload is in, by the name")


def _store(database: Database) -> BlobStore:
    from arc_halo.store.blobs import open_store

    if database.blob_url is None:
        raise BlobStoreNotConfigured(
            "no blob store is named; set ARC_HALO_BLOB_URL, or say arc-halo --blob-url URL blobs ..."
        )
    return open_store(database.blob_url)

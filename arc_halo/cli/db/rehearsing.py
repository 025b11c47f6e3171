"""``arc-halo db rehearse``: the upgrade that is pending, done to a clone."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from arc_halo.cli.db.application import app
from arc_halo.cli.output import Json, console, count, print_error, print_json, print_table, say, say_first, shown, size
from arc_halo.cli.progress import progress_bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import URL

    from arc_halo.database.rehearsal.cloning import Report
    from arc_halo.database.rehearsal.rehearsing import Description, FewerRows, Rehearsal, Step

_LETS_WRITE = {"AccessShareLock", "RowShareLock", "RowExclusiveLock", "ShareUpdateExclusiveLock"}
_SIGNS = {"missing": "-", "extra": "+", "changed": "~"}


@app.command("rehearse")
def rehearse(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Argument(metavar="[URL]", help="Another database than that of the command line.")
    ] = None,
    *,
    to: Annotated[str, typer.Option("--to", metavar="REVISION", help="Where to.")] = "head",
    by: Annotated[
        Literal["template", "dump", "neon"] | None,
        typer.Option("--by", help="How to clone: by default template if nobody is connected, else dump."),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on", metavar="URL|embedded", help="Another server for the clone, by a URL of any database there."
        ),
    ] = None,
    schema_only: Annotated[bool, typer.Option("--schema-only", help="Leave the rows behind.")] = False,
    and_back: Annotated[
        bool, typer.Option("--and-back", help="Downgrade then to where it was, and compare with before.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Do not drop the clone, and print its URL.")] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Only drop the clones of earlier rehearsals that nobody is connected to.")
    ] = False,
    json: Json = False,
) -> None:
    """Upgrade a clone of the database, and tell what the upgrade does; exit with 1 if it fails.

    Of each revision: seconds, locks on tables, write-ahead log, growth, tables
    written anew, rows that go; then whether the schema is as the code declares
    it. The database itself is read, and neither changed nor locked.

    Example: arc-halo db rehearse
    """
    invocation = context.obj if url is None else replace(context.obj, url=url)
    with invocation.target() as target, _server(on) as server:
        if clean:
            _clean(target.url, server, json=json)
            return
        rehearsal = _rehearsed(
            target.url, server, to=to, by=by, schema_only=schema_only, and_back=and_back, keep=keep, silent=json
        )
        if json:
            print_json(_as_dict(rehearsal, target.url, keep=keep))
        else:
            _print(rehearsal, target.name, keep=keep)
    if not rehearsal.is_good:
        raise typer.Exit(1)


def _rehearsed(source: URL, server: URL | None, *, silent: bool, **options: Any) -> Rehearsal:
    from arc_halo.database.rehearsal.rehearsing import rehearse as run

    with _shown(silent=silent) as (report, told):
        return run(source, _description(), on=server, report=report, told=told, **options)


@contextmanager
def _shown(*, silent: bool) -> Iterator[tuple[Report | None, Callable[[str], None] | None]]:
    """Callbacks for bytes, as a bar on stderr, and for what is done then, as lines after it."""
    with ExitStack() as stack:
        report = stack.enter_context(progress_bars(silent=silent))

        def told(doing: str) -> None:
            stack.close()
            console(stderr=True).print(doing)

        yield report, None if report is None else told


def _description() -> Description:
    """What the engine, which knows no schema, is to be told of ours."""
    from arc_halo.autogenerate.drift import compare_things, differences_from_declared
    from arc_halo.autogenerate.fingerprint import things
    from arc_halo.autogenerate.loss import marks
    from arc_halo.database.migrate import SCHEMA
    from arc_halo.database.rehearsal.rehearsing import Description
    from arc_halo.schema import Base

    return Description(
        standing=lambda connection: things(connection, SCHEMA),
        compare=compare_things,
        differences=lambda connection: differences_from_declared(connection, Base.metadata),
        marks=marks,
    )


@contextmanager
def _server(on: str | None) -> Iterator[URL | None]:
    """Where the clone is to be, if not beside its source; the embedded server runs as long as the block."""
    from arc_halo.database.embedded import embedded_server
    from arc_halo.database.url import parse_url
    from arc_halo.settings import load_settings

    if on != "embedded":
        yield None if on is None else parse_url(on)
        return
    server = embedded_server(load_settings().home)
    try:
        yield server.acquire()
    finally:
        server.release()


def _clean(source: URL, server: URL | None, *, json: bool) -> None:
    from arc_halo.database.rehearsal.cloning import clean

    found = clean(source, server)
    if json:
        print_json([asdict(each) for each in found])
        return
    for each in found:
        state = "dropped" if each.is_dropped else "in use "
        say(f"{state}  {shown(each.name)}  {size(each.nbytes)}")
    say(f"{count(sum(each.is_dropped for each in found), 'clone')} dropped")


def _print(rehearsal: Rehearsal, name: str, *, keep: bool) -> None:
    clone = rehearsal.clone
    if clone is None:
        say(f"{name} is at {_revisions(rehearsal.before)}: nothing to rehearse")
        return
    say(f"cloned {name} by {clone.method}: {size(clone.nbytes)} in {clone.seconds:.1f} s")
    rows = [_row(step) for step in rehearsal.steps]
    headers = ["revision", "", "seconds", "strongest lock", "log", "growth", "written anew"]
    print_table(headers, rows, right=["seconds", "log", "growth"])
    for step in rehearsal.steps:
        _print_details(step)
    _print_fewer("the upgrade leaves fewer rows in", rehearsal.fewer_rows)
    if rehearsal.failed:
        say((f"{rehearsal.failed.revision} failed, and {name} would stay at {_revisions(rehearsal.after)}", "bold red"))
    elif rehearsal.differences is None:
        say(f"{name} would be at {_revisions(rehearsal.after)}")
    else:
        _print_differences("at head the clone is as the code declares it", "the code", rehearsal.differences)
    if rehearsal.differences_back is not None:
        _print_differences("the way back leads to the same schema", "before", rehearsal.differences_back)
        _print_fewer("and back there are fewer rows in", rehearsal.fewer_rows_back or [])
    if keep:
        say("kept: ", _kept(clone.url))


def _row(step: Step) -> tuple[str, ...]:
    watched = step.watched
    lock = ""
    if watched.locks:
        strongest = [each for each in watched.locks if each.mode == watched.locks[0].mode]
        lock = f"{strongest[0].words} on {count(len(strongest), 'table')}, {_held(max(x.seconds for x in strongest))}"
    anew = ", ".join(watched.rewritten[:2]) + (
        f" and {len(watched.rewritten) - 2} more" if watched.rewritten[2:] else ""
    )
    way = "failed" if step.failure else step.direction
    return (
        step.revision, way, f"{watched.seconds:.2f}", lock, size(watched.wal_nbytes), size(watched.growth_nbytes), anew,
    )  # fmt: skip


def _print_details(step: Step) -> None:
    strong = [lock for lock in step.watched.locks if lock.mode not in _LETS_WRITE]
    if strong:
        say((f"{step.revision} {step.direction}: nobody writes meanwhile to", "bold"))
        say_first([Text(f"    {shown(each.table)}  {each.words}, {_held(each.seconds)}") for each in strong])
    for loss in step.losses:
        rows = "".join(f"; {table} has {count(nrows, 'row')}" for table, nrows in loss.rows.items())
        say((f"{step.revision} says that it loses {shown(loss.text)}{shown(rows)}", "bold yellow"))
    if step.failure:
        for line in (step.watched.statement or "").strip().splitlines():
            say(f"    {shown(line)}")
        print_error(f"{step.revision}: {step.failure}")


def _print_fewer(what: str, found: Sequence[FewerRows]) -> None:
    if found:
        say((what, "bold yellow"))
        for each in found:
            after = "is gone" if each.after is None else f"has {each.after:,}"
            say(f"    {shown(each.table)}  had {each.before:,}, {after}")


def _print_differences(equal: str, beside: str, found: Sequence[Any]) -> None:
    if not found:
        say(equal)
        return
    say((f"{count(len(found), 'difference')} from {beside}:", "bold red"))
    for each in found:
        say(f"{_SIGNS[each.change]} {each.kind} {shown(each.name)}")
        if each.change == "changed":
            for line in each.lines:
                say(f"    {shown(line)}")


def _held(seconds: float) -> str:
    from arc_halo.database.rehearsal.watching import PERIOD_SECONDS

    return f"{seconds:.2f} s" if seconds >= PERIOD_SECONDS else f"under {PERIOD_SECONDS:g} s"


def _kept(url: URL) -> str:
    from arc_halo.database import printable

    return printable(url.set(drivername="postgresql"))


def _revisions(revisions: tuple[str, ...]) -> str:
    return ", ".join(revisions) or "nothing"


def _as_dict(rehearsal: Rehearsal, source: URL, *, keep: bool) -> dict[str, Any]:
    from arc_halo.database import printable

    clone = rehearsal.clone
    made = None if clone is None else {
        "name": clone.name, "method": clone.method, "seconds": clone.seconds, "nbytes": clone.nbytes,
        "url": _kept(clone.url) if keep else None,
    }  # fmt: skip
    differences = rehearsal.differences
    back = rehearsal.differences_back
    return {
        "url": printable(source),
        "is_good": rehearsal.is_good,
        "before": rehearsal.before,
        "after": rehearsal.after,
        "clone": made,
        "steps": [_step(step) for step in rehearsal.steps],
        "fewer_rows": [asdict(each) for each in rehearsal.fewer_rows],
        "differences": None if differences is None else [asdict(each) for each in differences],
        "differences_back": None if back is None else [asdict(each) for each in back],
        "fewer_rows_back": None
        if rehearsal.fewer_rows_back is None
        else [asdict(each) for each in rehearsal.fewer_rows_back],
    }


def _step(step: Step) -> dict[str, Any]:
    watched = step.watched
    return {
        "revision": step.revision,
        "direction": step.direction,
        "about": step.about,
        "seconds": watched.seconds,
        "locks": [{"table": each.table, "mode": each.words, "seconds": each.seconds} for each in watched.locks],
        "wal_nbytes": watched.wal_nbytes,
        "growth_nbytes": watched.growth_nbytes,
        "rewritten": watched.rewritten,
        "losses": [asdict(each) for each in step.losses],
        "failure": step.failure,
        "statement": watched.statement,
    }

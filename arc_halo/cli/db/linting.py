"""``arc-halo db lint``: what revisions would do to the database, before they do it."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from arc_halo.cli.db.application import app
from arc_halo.cli.output import Json, count, print_json, print_table, say, shown, size
from arc_halo.errors import PermissionDenied

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL

    from arc_halo.autogenerate.linting import Judgement, Limits, Report, RevisionReport
    from arc_halo.cli.invocation import Target

_HEADERS: Final = ("statement", "table", "lock", "blocks", "work", "rows", "size")
_STATEMENT_WIDTH: Final = 60
_READING: Final = "ACCESS SHARE"


@app.command("lint")
def lint(
    context: typer.Context,
    revisions: Annotated[
        str,
        typer.Argument(metavar="[REVISION|FROM:TO]", help="Which; head is all that the database has not yet."),
    ] = "head",
    *,
    scratch: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where to make the scratch database instead.", show_default=False),
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="More rows make a table large.")] = 10_000,
    nbytes: Annotated[str, typer.Option("--size", metavar="SIZE", help="More bytes make a table large.")] = "1MB",
    strict: Annotated[bool, typer.Option("--strict", help="Take every table for a large one.")] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE", help="Let findings under this rule be notes; may be repeated.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Say what revisions would lock, rewrite and read of tables as large as they are; exit with 1 if that is dangerous.

    Each statement is run on an empty scratch database, which is dropped then;
    what it locks there is what it will lock here, as PostgreSQL itself has it.
    This database's catalogs are read, and nothing else is touched. A danger is
    what blocks readers or writers of a large table for longer than a moment,
    waits for a lock without end, or fails.

    Example: arc-halo db lint 0003:0005
    """
    from arc_halo.autogenerate.linting import Limits
    from arc_halo.database import printable
    from arc_halo.formats.sharding import parse_size

    limits = Limits(rows, parse_size(nbytes), strict, frozenset(allow or ()))
    with context.obj.target() as target, _scratch(target, scratch) as scratch_url:
        report = _linted(target.url, scratch_url, revisions, limits)
    if json:
        print_json({"url": printable(target.url), "is_safe": not report.dangers} | asdict(report))
    else:
        _print(report, target.name)
    if report.dangers:
        raise typer.Exit(1)


def _linted(live_url: URL, scratch_url: URL, revisions: str, limits: Limits) -> Report:
    from arc_halo.autogenerate.linting import lint as lint_revisions
    from arc_halo.database.migrate import alembic_config, known_revisions, migration_engine

    live_engine = migration_engine(live_url)
    current = known_revisions(live_engine)
    with live_engine.connect() as live, migration_engine(scratch_url).connect() as scratch:
        config = alembic_config(live_url)
        return lint_revisions(config, live, scratch, revisions=revisions, current=current, limits=limits)


@contextmanager
def _scratch(target: Target, given: str | None) -> Iterator[URL]:
    """A scratch database: where it is asked for, else beside the target, else on the embedded server."""
    from arc_halo.autogenerate.linting import temporary_database
    from arc_halo.database import parse_url
    from arc_halo.database.embedded import embedded_server
    from arc_halo.database.migrate import migration_engine
    from arc_halo.settings import load_settings

    with ExitStack() as stack:
        url = target.url if given is None else parse_url(given)
        try:
            made = stack.enter_context(temporary_database(migration_engine(url)))
        except PermissionDenied:
            if given is not None or target.is_embedded:
                raise
            server = embedded_server(load_settings().home)
            url = server.acquire()
            stack.callback(server.release)
            made = stack.enter_context(temporary_database(migration_engine(url)))
        yield made


def _print(report: Report, name: str) -> None:
    for revision in report.revisions:
        _print_revision(revision)
    if report.server_version // 10_000 != report.live_version // 10_000:
        versions = f"{report.server_version // 10_000}, not {report.live_version // 10_000} as {name}"
        say((f"looked at on PostgreSQL {versions}; --scratch names another server", "yellow"))
    if not report.revisions:
        say(f"{name} has every revision: nothing to look at")
        return
    say((count(report.dangers, "danger"), "bold"), f" in {count(len(report.revisions), 'revision')} for {name}")


def _print_revision(revision: RevisionReport) -> None:
    say((f"{revision.revision} {shown(revision.doc)}", "bold"))
    lines = [line for judged in revision.statements for line in _lines(judged)]
    if lines:
        print_table(_HEADERS, lines, right=("rows", "size"))
    found = [(judged.statement, each) for judged in revision.statements for each in judged.findings]
    advised: set[str] = set()
    for statement, each in sorted(found, key=lambda pair: pair[1].severity):
        is_external = each.rule.startswith("squawk:")
        if is_external and each.rule in advised:
            continue  # once is enough; --json has all
        style = "bold red" if each.severity == "danger" else "yellow"
        say(
            (each.severity, style), f" {each.rule}: {shown(each.table or _shortened(statement))}: {shown(each.message)}"
        )
        if each.advice and each.advice not in advised:
            say(f"    -> {shown(each.advice)}")
        advised |= {each.advice, each.rule}
    if not lines and not found:
        say("touches nothing that was there before")


def _lines(judged: Judgement) -> Iterator[tuple[object, ...]]:
    """A line for each table that is locked for more than reading, the first with the statement."""
    said = _shortened(judged.statement)
    for each in judged.effects:
        if each.lock in {_READING, None} and each.work is None:
            continue
        yield said, each.table, each.lock, each.blocks, each.work, each.rows, size(each.nbytes)
        said = ""


def _shortened(statement: str) -> str:
    line = shown(" ".join(statement.split()))
    return line if len(line) <= _STATEMENT_WIDTH else f"{line[: _STATEMENT_WIDTH - 3]}..."

"""``arc-halo db``: its revisions, its health, where it is."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from arc_halo.cli.db.application import app
from arc_halo.cli.output import Json, count, print_json, print_table, say, size
from arc_halo.errors import DatabaseError, DataLossRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arc_halo.cli.invocation import Invocation, Target


class Change:
    """A migration of one database: between which revisions it went."""

    def __init__(self, target: Target, before: tuple[str, ...]) -> None:
        self.target = target
        self.before = self.after = before

    def report(self, verb: str, *, json: bool) -> None:
        """Say what was done."""
        from arc_halo.database import printable

        if json:
            print_json({"url": printable(self.target.url), "before": self.before, "after": self.after})
        elif self.before == self.after:
            say(f"{self.target.name} is at {_revisions(self.after)}: nothing to do")
        else:
            say(f"{verb} {self.target.name} from {_revisions(self.before)} to {_revisions(self.after)}")


@contextmanager
def _changing(invocation: Invocation) -> Iterator[Change]:
    """Hold the migration lock, so that of several processes the one that did the work says so."""
    from arc_halo.database.migrate import current, migration_engine, migration_lock

    with invocation.target() as target, migration_lock(migration_engine(target.url)):
        change = Change(target, current(target.url))
        yield change
        change.after = current(target.url)


@contextmanager
def _advised() -> Iterator[None]:
    """Say how rows are allowed to go here; the message has how plain Alembic does it."""
    try:
        yield
    except DataLossRefused as error:
        raise DataLossRefused(f"{error} On this command line that is --allow-data-loss.") from error


@app.command("upgrade")
def upgrade(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(metavar="[REVISION]", help="Where to.")] = "head",
    *,
    allow_data_loss: Annotated[
        bool, typer.Option("--allow-data-loss", help="Go on where a revision says that it loses data.")
    ] = False,
    json: Json = False,
) -> None:
    """Bring the schema to the code's revision, or to the one given.

    Several at once are fine: one does it, the others wait and find it done.
    Before the embedded database is upgraded to head it is dumped, if it holds an older schema.
    Refused where a revision says that it loses data, unless that is allowed.

    Example: arc-halo db upgrade
    """
    from arc_halo.database import connect
    from arc_halo.database.migrate import upgrade as migrate

    with _changing(context.obj) as change, _advised():
        if revision == "head":
            connect(context.obj.url, migrate=True, allow_data_loss=allow_data_loss).close()
        else:
            migrate(change.target.url, revision, allow_data_loss=allow_data_loss)
    change.report("upgraded", json=json)


@app.command("downgrade", context_settings={"ignore_unknown_options": True})
def downgrade(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(metavar="REVISION", help="A revision, -1 for the one before, or base.")],
    *,
    allow_data_loss: Annotated[
        bool, typer.Option("--allow-data-loss", help="Go on where rows would be dropped.")
    ] = False,
    json: Json = False,
) -> None:
    """Take the schema back to an older revision.

    Refused where rows would be dropped, unless that is allowed.

    Example: arc-halo db downgrade -1
    """
    from arc_halo.database.migrate import downgrade as migrate

    with _changing(context.obj) as change, _advised():
        migrate(change.target.url, revision, allow_data_loss=allow_data_loss)
    change.report("downgraded", json=json)


@app.command("current")
def current(context: typer.Context, *, json: Json = False) -> None:
    """Show at which revision the database is, and at which the code.

    Example: arc-halo db current
    """
    from arc_halo.database import printable
    from arc_halo.database.migrate import current as current_revisions
    from arc_halo.database.migrate import heads

    with context.obj.target() as target:
        found, expected = current_revisions(target.url), heads()
    if json:
        print_json({"url": printable(target.url), "current": found, "head": expected, "is_at_head": found == expected})
    else:
        state = "" if found == expected else f"; the code is at {_revisions(expected)}"
        say(f"{target.name} is at {_revisions(found)}{state}")


@app.command("check")
def check(context: typer.Context, *, json: Json = False) -> None:
    """Compare the database with what the code declares; exit with 1 if they differ.

    Example: arc-halo db check
    """
    from arc_halo.database import printable
    from arc_halo.database.migrate import check as compare
    from arc_halo.database.migrate import ensure_at_head, migration_engine

    with context.obj.target() as target:
        ensure_at_head(migration_engine(target.url))
        compare(target.url)
    if json:
        print_json({"url": printable(target.url), "is_as_declared": True})
    else:
        say(f"{target.name} is as the code declares it")


@app.command("doctor")
def doctor(context: typer.Context, *, json: Json = False) -> None:
    """Look at server, extension, encryption, schema, sizes, connections and the blob store.

    Says what to do about anything that is wrong, and exits with 1 then.

    Example: arc-halo db doctor
    """
    from arc_halo.cli.doctor import examine
    from arc_halo.database import printable

    with context.obj.target() as target:
        examination = examine(target, context.obj.blob_url)
    wrong = [finding for finding in examination.findings if finding.advice]
    if json:
        print_json({"url": printable(target.url), "is_healthy": not wrong} | examination.as_dict())
    else:
        for finding in examination.findings:
            mark = Text("wrong", "bold red") if finding.advice else Text("ok   ", "green")
            say(mark, f"  {finding.subject}: {finding.state}")
            if finding.advice:
                say(("       -> " + finding.advice, "bold"))
        if examination.tables:
            say("")
            rows = [(name, size(nbytes)) for name, nbytes in examination.tables.items()]
            print_table(["largest tables", "size"], rows, right=["size"])
    if wrong:
        raise DatabaseError(f"{count(len(wrong), 'finding')} to put right: {', '.join(each.subject for each in wrong)}")


@app.command("url")
def url(
    context: typer.Context,
    *,
    show_password: Annotated[bool, typer.Option("--show-password", help="Print secrets, too.")] = False,
    json: Json = False,
) -> None:
    """Print the URL of the database that commands use.

    A configured one can be handed on: psql "$(arc-halo db url --show-password)".
    The embedded server stops with this command unless somebody else uses it.

    Example: arc-halo db url
    """
    from arc_halo.database import printable

    with context.obj.target() as target:
        # As libpq's programs read it: prepare_threshold is psycopg's own.
        plain = target.url.set(drivername="postgresql").difference_update_query(["prepare_threshold"])
        text = plain.render_as_string(hide_password=False) if show_password else printable(plain)
    if json:
        print_json({"url": text, "is_embedded": target.is_embedded})
    else:
        say(text)


def _revisions(revisions: tuple[str, ...]) -> str:
    return ", ".join(revisions) or "nothing"

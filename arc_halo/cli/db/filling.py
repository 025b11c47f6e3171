"""``arc-halo db backfill``: new columns get the values of the old ones."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arc_halo.cli.db.application import app
from arc_halo.cli.output import Json, count, print_json, say, shown
from arc_halo.cli.progress import progress_rows
from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from arc_halo.autogenerate.expanding import Expansion


@app.command("backfill")
def backfill(
    context: typer.Context,
    column: Annotated[
        str | None, typer.Argument(metavar="[SCHEMA.TABLE.COLUMN]", help="One new column; by default all.")
    ] = None,
    *,
    batch: Annotated[int, typer.Option(min=1, help="Rows that are looked at in one transaction.")] = 1000,
    pause: Annotated[float, typer.Option(min=0, help="Seconds to wait after each batch.")] = 0.0,
    triggers: Annotated[
        Literal["fire", "silence"] | None, typer.Option(help="What other triggers of the table are to do.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Fill nothing; exit with 1 if a row is not filled.")] = False,
    json: Json = False,
) -> None:
    """Fill columns that are to take the place of others, in short transactions beside readers and writers.

    The columns are those of which the database has sync triggers, in any
    schema. What was killed is run again and goes on with the rows that are
    left; several at once are fine.

    Example: arc-halo db backfill --batch 500 --pause 0.1
    """
    from arc_halo.database import printable
    from arc_halo.database.migrate import migration_engine

    done: list[dict[str, Any]] = []
    with context.obj.target() as target:
        engine = migration_engine(target.url)
        for expansion in _wanted(engine, column):
            rows = 0 if check else _fill(engine, expansion, batch, pause, triggers, silent=json)
            done.append({"column": expansion.column, "rows": rows, "is_filled": _is_filled(engine, expansion)})
    if json:
        print_json({"url": printable(target.url), "columns": done})
    elif not done:
        say(f"{target.name} has no column to fill")
    else:
        for each in done:
            left = "" if each["is_filled"] else "; rows are left"
            say(f"{shown(each['column'])}: filled {count(each['rows'], 'row')}{left}")
    if not all(each["is_filled"] for each in done):
        raise typer.Exit(1)


def _wanted(engine: Engine, column: str | None) -> list[Expansion]:
    from arc_halo.autogenerate.expanding import standing_expansions

    with engine.connect() as connection:
        found = standing_expansions(connection)
    wanted = [each for each in found if column in (None, each.column)]
    if column is not None and not wanted:
        known = ", ".join(each.column for each in found) or "none"
        raise ConfigurationError(f"no column {column} is to take the place of another; those that are: {known}")
    return wanted


def _fill(engine: Engine, expansion: Expansion, batch: int, pause: float, triggers: Any, *, silent: bool) -> int:
    from arc_halo.autogenerate.expanding import backfill as fill

    with progress_rows(f"filling {shown(expansion.column)}", silent=silent) as report:
        return fill(engine, expansion, batch=batch, pause=pause, triggers=triggers, report=report).rows


def _is_filled(engine: Engine, expansion: Expansion) -> bool:
    from arc_halo.autogenerate.expanding import is_filled

    with engine.connect() as connection:
        return is_filled(connection, expansion)

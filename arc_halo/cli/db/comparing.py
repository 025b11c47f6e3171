"""``arc-halo db fingerprint`` and ``drift``: what a schema holds, and what differs."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from arc_halo.cli.db.application import app
from arc_halo.cli.output import Json, count, print_json, say, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import URL

    from arc_halo.autogenerate.drift import Difference
    from arc_halo.autogenerate.fingerprint import Thing

_SIGNS = {"missing": ("-", "red"), "extra": ("+", "green"), "changed": ("~", "yellow")}


@app.command("fingerprint")
def fingerprint(
    context: typer.Context,
    *,
    full: Annotated[bool, typer.Option("--full", help="Every thing of the schema, with its definition.")] = False,
    json: Json = False,
) -> None:
    """Print a digest of all that the schema holds, equal for two databases that hold the same.

    Tables, columns, constraints, indexes, sequences, types, views, functions,
    triggers, policies and comments count; rows, partitions and the revision do not.

    Example: arc-halo db fingerprint
    """
    from arc_halo.autogenerate.drift import digest
    from arc_halo.database import printable

    with context.obj.target() as target:
        described = _standing(target.url)
    if json:
        things = [{"kind": each.kind, "name": each.name, "text": each.text} for each in described]
        said = {"url": printable(target.url), "digest": digest(described), "count": len(described)}
        print_json(said | {"things": things} if full else said)
        return
    if full:
        for each in described:
            say(shown(each.line))
    say((digest(described), "bold"), f"  {count(len(described), 'thing')} in {target.name}")


@app.command("drift")
def drift(
    context: typer.Context,
    *,
    other: Annotated[
        str | None,
        typer.Option("--with", metavar="URL", help="Another database, in the place of the code.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Compare the database with what the code declares, or with another database; exit with 1 if they differ.

    Differences are told from the code (or the other database) to this one:
    - is missing here, + is here alone, ~ is another. Nothing is changed or
    locked. Whether somebody has changed a database by hand is seen at once,
    also what `arc-halo db check` has no migration for.

    Example: arc-halo db drift
    """
    from arc_halo.autogenerate.drift import compare_things
    from arc_halo.database import parse_url, printable

    with context.obj.target() as target:
        if other is None:
            found = _drifted(target.url)
        else:
            found = compare_things(_standing(parse_url(other)), _standing(target.url))
    if json:
        beside = None if other is None else printable(parse_url(other))
        said = {"url": printable(target.url), "with": beside, "is_equal": not found}
        print_json(said | {"differences": [asdict(each) for each in found]})
    else:
        _print(found, target.name, "the code" if other is None else printable(parse_url(other)))
    if found:
        raise typer.Exit(1)


def _print(found: Sequence[Difference], here: str, there: str) -> None:
    for each in found:
        sign, style = _SIGNS[each.change]
        say((f"{sign} {each.kind} {shown(each.name)}", f"bold {style}"))
        for line in each.lines:
            say(f"    {shown(line)}" if each.change == "changed" else f"    {shown(line[2:])}")
    if not found:
        say(f"{here} holds the same as {there}")
        return
    counts = {change: sum(each.change == change for each in found) for change in _SIGNS}
    parts = f"{counts['missing']} missing, {counts['extra']} here alone, {counts['changed']} changed"
    say((count(len(found), "difference"), "bold"), f" between {there} and {here}: {parts}")


def _standing(url: URL) -> list[Thing]:
    from arc_halo.autogenerate.fingerprint import things
    from arc_halo.database.migrate import SCHEMA, migration_engine

    with migration_engine(url).connect() as connection:  # never committed
        return sorted(things(connection, SCHEMA))


def _drifted(url: URL) -> list[Difference]:
    from arc_halo.autogenerate.drift import differences_from_declared
    from arc_halo.database.migrate import migration_engine
    from arc_halo.schema import Base

    with migration_engine(url).connect() as connection:  # never committed
        return differences_from_declared(connection, Base.metadata)

"""An upgrade done to a clone, revision by revision, and what it would do to the database."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from arc_halo.database.migrate import (
    SCHEMA,
    VERSION_TABLE,
    current,
    downgrade,
    heads,
    known_revisions,
    migration_engine,
    upgrade,
    way_up,
)
from arc_halo.database.rehearsal.cloning import Clone, Method, cloned
from arc_halo.database.rehearsal.watching import Watched, watching

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from alembic.script import Script
    from sqlalchemy import URL, Connection

    from arc_halo.database.rehearsal.cloning import Report

_Seen = TypeVar("_Seen")
Direction = Literal["up", "down"]
_WORD: Final = re.compile(r"\w+")
_COUNTED: Final = text("""
SELECT c.relname, pg_catalog.format('%I.%I', n.nspname, c.relname)
  FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname <> :version_table
 ORDER BY 1""")


@dataclass(frozen=True, slots=True)
class Description:
    """How a schema is described and revisions are read, which those above this layer know.

    Attributes
    ----------
    standing
        What a database holds.
    compare
        What differs between two of these.
    differences
        Of a database from what the code declares.
    marks
        What the file of a revision says that it loses.
    """

    standing: Callable[[Connection], Sequence[Any]]
    compare: Callable[[Sequence[Any], Sequence[Any]], list[Any]]
    differences: Callable[[Connection], list[Any]]
    marks: Callable[[Path], list[str]]


@dataclass(frozen=True, slots=True)
class Loss:
    """What the file of a revision says that it loses, and how many rows the tables had that it names."""

    text: str
    rows: dict[str, int]


@dataclass(frozen=True, slots=True)
class Step:
    """One revision, up or down."""

    revision: str
    direction: Direction
    about: str
    watched: Watched
    losses: list[Loss]
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class FewerRows:
    """A table that had more rows before; ``after`` is None where the table is gone."""

    table: str
    before: int
    after: int | None


@dataclass(slots=True)
class Rehearsal:
    """What came of it.

    Attributes
    ----------
    clone
        None where nothing was to be done.
    fewer_rows
        Tables of which the upgrade took rows, whether its revisions say so or not.
    differences
        Of the clone from the code, where it came to the code's revision; else None.
    differences_back, fewer_rows_back
        Of the clone after the way back from the one before it was upgraded; None where there was no way back.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    clone: Clone | None = None
    steps: list[Step] = field(default_factory=list)
    fewer_rows: list[FewerRows] = field(default_factory=list)
    differences: list[Any] | None = None
    differences_back: list[Any] | None = None
    fewer_rows_back: list[FewerRows] | None = None

    @property
    def failed(self) -> Step | None:
        """The step that PostgreSQL refused, after which there were no others."""
        return next((step for step in self.steps if step.failure is not None), None)

    @property
    def is_good(self) -> bool:
        """Whether every step was done, and what stands then is what should."""
        return self.failed is None and not self.differences and not self.differences_back


def rehearse(
    source: URL,
    description: Description,
    *,
    to: str = "head",
    by: Method | None = None,
    on: URL | None = None,
    schema_only: bool = False,
    keep: bool = False,
    and_back: bool = False,
    report: Report | None = None,
    told: Callable[[str], None] | None = None,
) -> Rehearsal:
    """Upgrade a clone of ``source``, also where that loses data, and see what happens; the source is only read.

    Parameters
    ----------
    to
        A revision; by default the code's.
    by, on, schema_only, keep
        As `cloned` takes them.
    and_back
        Go back to where it was, and compare.
    report, told
        Told of bytes while it is cloned, and of what is done then.

    Raises
    ------
    SchemaNotAtHead
        ``to`` cannot be reached from where the source is.
    ConfigurationError, DatabaseError
        It cannot be cloned. What is wrong with a revision is not raised: it is in the step.
    """
    before = known_revisions(migration_engine(source))
    if not way_up(before, to):
        return Rehearsal(before, before)
    with cloned(source, by=by, on=on, schema_only=schema_only, keep=keep, report=report) as clone:
        return _on(clone, description, to, and_back=and_back, told=told or (lambda _: None))


def _on(clone: Clone, description: Description, to: str, *, and_back: bool, told: Callable[[str], None]) -> Rehearsal:
    engine = migration_engine(clone.url)
    before = known_revisions(engine)
    scripts = way_up(before, to)
    rehearsal = Rehearsal(before, before, clone)
    told("counting rows")
    rows = _rows(clone.url)
    standing = _looked(clone.url, description.standing) if and_back else []
    for script in scripts:
        told(f"upgrading to {script.revision}")
        losses = _losses(clone.url, description.marks(Path(script.path)))
        rehearsal.steps.append(_step(clone.url, script, "up", losses))
        if rehearsal.failed:
            break
    rehearsal.after = current(engine)
    told("comparing")
    rehearsal.fewer_rows = _fewer(rows, _rows(clone.url))
    if rehearsal.after == heads():
        rehearsal.differences = _looked(clone.url, description.differences)
    if and_back and not rehearsal.failed:
        for script in reversed(scripts):
            told(f"going back from {script.revision}")
            rehearsal.steps.append(_step(clone.url, script, "down", []))
            if rehearsal.failed:
                return rehearsal
        rehearsal.differences_back = description.compare(standing, _looked(clone.url, description.standing))
        rehearsal.fewer_rows_back = _fewer(rows, _rows(clone.url))
    return rehearsal


def _step(url: URL, script: Script, direction: Direction, losses: list[Loss]) -> Step:
    """Run one revision; what goes wrong in it is part of the answer."""
    failure = None
    with watching(url) as watched:
        try:
            if direction == "up":
                upgrade(url, script.revision, allow_data_loss=True)
            else:
                downgrade(url, "-1", allow_data_loss=True)
        except Exception as error:  # noqa: BLE001  a revision is a program: it may raise anything
            failure = watched.message or _reason(error)
    if failure is None:
        watched.statement = watched.message = None  # an error that the revision saw to itself
    return Step(script.revision, direction, script.doc or "", watched, losses, failure)


def _reason(error: Exception) -> str:
    said = str(error.orig) if isinstance(error, DBAPIError) and error.orig is not None else str(error)
    return f"{type(error).__name__}: {said.strip()}"


def _losses(url: URL, marks: list[str]) -> list[Loss]:
    return [Loss(mark, _rows(url, set(_WORD.findall(mark)))) for mark in marks]


def _rows(url: URL, names: set[str] | None = None) -> dict[str, int]:
    """How many rows each table has, or each of these, counted; partitions are their parent's."""
    with migration_engine(url).connect() as connection:
        tables = connection.execute(_COUNTED, {"schema": SCHEMA, "version_table": VERSION_TABLE}).all()
        count = "SELECT count(*) FROM "
        return {
            table: connection.exec_driver_sql(count + quoted).scalar_one()
            for table, quoted in tables
            if names is None or table in names
        }


def _fewer(before: dict[str, int], after: dict[str, int]) -> list[FewerRows]:
    return [
        FewerRows(f"{SCHEMA}.{table}", count, after.get(table))
        for table, count in before.items()
        if count > after.get(table, 0)
    ]


def _looked(url: URL, look: Callable[[Connection], _Seen]) -> _Seen:
    with migration_engine(url).connect() as connection:  # never committed
        return look(connection)

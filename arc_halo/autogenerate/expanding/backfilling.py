"""Fill the new column of the rows that were there before the sync trigger, beside readers and writers."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeVar

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from arc_halo.autogenerate.expanding.declaring import MARK, Expansion, literal, quoted
from arc_halo.autogenerate.expanding.standing import standing_expansions
from arc_halo.autogenerate.render import escape_colons
from arc_halo.errors import ConfigurationError, DatabaseError, LockTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection, Engine, TextClause

_T = TypeVar("_T")
Key = tuple[str, ...]
"""Values of a row's key as text, which PostgreSQL reads again to the bit."""

_LOCK_TIMEOUT: Final = "1s"
_ATTEMPTS: Final = 10
_FIRST_WAIT_SECONDS: Final = 0.1
_LONGEST_WAIT_SECONDS: Final = 4.0
_BUSY: Final = {"55P03", "40P01", "40001"}  # lock timeout, deadlock, serialization failure
_KEY: Final = """
SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod)
  FROM (SELECT i.indrelid, k.numbers
          FROM pg_catalog.pg_index AS i
         -- Columns that an index only carries come last.
         CROSS JOIN LATERAL (SELECT (CAST(i.indkey AS smallint[]))[0 : i.indnkeyatts - 1] AS numbers) AS k
         WHERE i.indrelid = pg_catalog.to_regclass(:target) AND i.indisunique AND i.indisvalid AND i.indimmediate
           AND i.indpred IS NULL AND i.indexprs IS NULL
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
                            WHERE a.attrelid = i.indrelid AND a.attnum = ANY (k.numbers) AND NOT a.attnotnull)
         ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid LIMIT 1) AS i
 CROSS JOIN LATERAL unnest(i.numbers) WITH ORDINALITY AS k (number, place)
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number
 ORDER BY k.place"""
_ROWS: Final = """
SELECT coalesce(sum(greatest(c.reltuples, pg_catalog.pg_stat_get_live_tuples(c.oid), 0)), 0)::bigint
  FROM pg_catalog.pg_class AS c
 WHERE c.oid = pg_catalog.to_regclass(:target)
    OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree(pg_catalog.to_regclass(:target)))"""
_TRIGGERS: Final = """
SELECT DISTINCT t.tgname
  FROM pg_catalog.pg_trigger AS t
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = t.tgrelid AND a.attname = :new
 WHERE (t.tgrelid = pg_catalog.to_regclass(:target)
        OR t.tgrelid IN (SELECT relid FROM pg_catalog.pg_partition_tree(pg_catalog.to_regclass(:target))))
   AND NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgenabled IN ('O', 'A') AND t.tgtype & 16 <> 0
   AND (CAST(t.tgattr AS text) = '' OR a.attnum = ANY (t.tgattr))
   AND pg_catalog.encode(t.tgargs, 'escape') NOT LIKE :mark
 ORDER BY 1"""
_REFERS: Final = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_constraint AS c
                 JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
                WHERE c.contype = 'f' AND c.conrelid = pg_catalog.to_regclass(:target) AND a.attname = :new)"""


@dataclass(frozen=True, slots=True)
class Backfilled:
    """What a backfill did: ``rows`` is how many it filled, of ``batches`` it looked at."""

    expansion: Expansion
    rows: int
    batches: int


def is_filled(connection: Connection, expansion: Expansion) -> bool:
    """Whether no row wants its value any more; reads the table until it finds one that does."""
    query = f"SELECT NOT EXISTS (SELECT FROM {expansion.target} WHERE {expansion.unfilled})"  # noqa: S608  (quoted)
    return bool(connection.scalar(text(escape_colons(query))))


def backfill(
    engine: Engine,
    expansion: Expansion,
    *,
    batch: int = 1000,
    pause: float = 0.0,
    triggers: Literal["fire", "silence"] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Backfilled:
    """Fill the new column wherever it still wants its value; when this returns, every row has it.

    Rows are walked in the order of their key, and filled in transactions of one batch each. Whatever is killed in its
    midst is run again and goes on with the rows that are left. Rows that somebody holds are passed over, then waited
    for one by one, so that no deadlock comes of it.

    Parameters
    ----------
    engine
        Of the database, with the right to update the table and to read all of it.
    expansion
        Declared, and brought into the database by its revision.
    batch
        Rows that are looked at in one transaction.
    pause
        Seconds to wait after each batch in which something was filled.
    triggers
        What other triggers that an UPDATE of the new column fires are to do. ``"silence"`` sets
        ``session_replication_role``, which needs the privilege. Left out, there must be no such triggers.
    report
        Called with the rows looked at so far and those that there are, as far as the server's statistics know.

    Raises
    ------
    ConfigurationError
        There is no sync trigger, no key to walk by, or triggers of which it was not said what they are to do.
    LockTimeout
        Somebody holds a row for too long; what was filled stays filled.
    """
    if batch < 1 or pause < 0:
        raise ConfigurationError("A batch is one row or more, a pause no less than nothing.")
    with engine.connect().execution_options(isolation_level="READ COMMITTED") as connection:
        with connection.begin():
            walk = _Walk(expansion, _key(connection, expansion), batch, silent=triggers == "silence")
            _refuse(connection, expansion, triggers)
            total = int(connection.scalar(text(_ROWS), {"target": expansion.target}) or 0)
        return _filled(connection, walk, pause, total, report or (lambda _done, _total: None))


def _filled(
    connection: Connection, walk: _Walk, pause: float, total: int, report: Callable[[int, int], None]
) -> Backfilled:
    rows = batches = 0
    lower: Key | None = None
    while True:
        done = _patiently(walk.expansion, lambda lower=lower: walk.fill(connection, lower))  # type: ignore[misc]
        rows += done.rows
        for key in done.held:
            rows += _patiently(walk.expansion, lambda key=key: walk.fill_one(connection, key))  # type: ignore[misc]
        batches += 1
        if done.upper is None:
            report(max(total, 1), max(total, 1))
            return Backfilled(walk.expansion, rows, batches)
        report(batches * walk.batch, max(total, batches * walk.batch))
        if done.rows:
            time.sleep(pause)
        lower = done.upper


class Done(NamedTuple):
    """A batch: rows filled, the key it ended at (None at the end of the table), and rows that somebody held."""

    rows: int
    upper: Key | None
    held: Sequence[Key]


class _Walk:
    """The statements for one table; a key is a list of columns with their types."""

    def __init__(self, expansion: Expansion, key: Sequence[tuple[str, str]], batch: int, *, silent: bool) -> None:
        self.expansion, self.batch = expansion, batch
        self._silent = silent
        self._target, self._new = escape_colons(expansion.target), escape_colons(quoted(expansion.new))
        self._forward, self._unfilled = escape_colons(expansion.forward), escape_colons(expansion.unfilled)
        self._names = [escape_colons(quoted(row[0])) for row in key]
        self._types = [row[1] for row in key]
        self._columns = f"({', '.join(self._names)})"
        self._texts = ", ".join(f"CAST({name} AS text)" for name in self._names)
        # Qualified: ORDER BY takes a bare name for what is selected, which is the text.
        self._order = ", ".join(f"{escape_colons(quoted(expansion.table))}.{name}" for name in self._names)

    def fill(self, connection: Connection, lower: Key | None) -> Done:
        """Fill the batch after a key."""
        after = "true" if lower is None else f"{self._columns} > {self._values('lower')}"
        with connection.begin():
            self._settle(connection)
            walked = f"FROM {self._target} WHERE {after}"
            bound = f"SELECT {self._texts} {walked} ORDER BY {self._order} OFFSET :rows LIMIT 1"
            upper = self._rows(connection, bound, lower=lower, rows=self.batch - 1)
            until = f" AND {self._columns} <= {self._values('upper')}" if upper else ""
            bounds = {"lower": lower, "upper": upper[0] if upper else None}
            wanted = f"{walked}{until} AND {self._unfilled} ORDER BY {self._order}"
            # A row that is updated meanwhile is filled by the trigger; that it is, is seen when it is locked.
            update = (
                f"WITH free AS MATERIALIZED (SELECT {self._order} {wanted} FOR NO KEY UPDATE SKIP LOCKED) "  # noqa: S608
                f"UPDATE {self._target} SET {self._new} = {self._forward} "
                f"WHERE {self._columns} IN (SELECT * FROM free) AND {self._new} IS NULL"
            )
            rows = connection.execute(*self._bound(update, **bounds)).rowcount
            held = self._rows(connection, f"SELECT {self._texts} {wanted}", **bounds)
        return Done(rows, upper[0] if upper else None, held)

    def fill_one(self, connection: Connection, key: Key) -> int:
        """Fill a row that somebody held: who waits for one row, and has none, is in nobody's way."""
        update = (
            f"UPDATE {self._target} SET {self._new} = {self._forward} "  # noqa: S608
            f"WHERE {self._columns} = {self._values('key')} AND {self._unfilled}"
        )
        with connection.begin():
            self._settle(connection)
            return connection.execute(*self._bound(update, key=key)).rowcount

    def _settle(self, connection: Connection) -> None:
        # Without statistics the planner would read the whole table for each batch; a policy would hide rows.
        settings = {"lock_timeout": _LOCK_TIMEOUT, "enable_seqscan": "off", "row_security": "off"}
        if self._silent:
            settings["session_replication_role"] = "replica"
        for name, value in settings.items():
            connection.execute(text(f"SET LOCAL {name} TO {literal(value)}"))

    def _values(self, name: str) -> str:
        return f"({', '.join(f'CAST(:{name}_{n} AS {each})' for n, each in enumerate(self._types))})"

    def _rows(self, connection: Connection, query: str, **values: Key | int | None) -> list[Key]:
        return [tuple(row) for row in connection.execute(*self._bound(query, **values))]

    def _bound(self, sql: str, **values: Key | int | None) -> tuple[TextClause, dict[str, object]]:
        parameters: dict[str, object] = {}
        for name, value in values.items():
            if isinstance(value, tuple):
                parameters |= {f"{name}_{n}": each for n, each in enumerate(value)}
            elif value is not None:
                parameters[name] = value
        return text(sql), parameters


def _key(connection: Connection, expansion: Expansion) -> Sequence[tuple[str, str]]:
    """The columns of the primary key, or of another by which every row is found."""
    if expansion not in standing_expansions(connection, expansion.schema):
        raise ConfigurationError(
            f"{expansion.target} has no trigger that keeps {expansion.new} in step with {expansion.old} as declared:"
            " run the revision that expands the table first."
        )
    rows = connection.execute(text(_KEY), {"target": expansion.target})
    key = [(row[0], row[1]) for row in rows]
    if not key:
        raise ConfigurationError(f"{expansion.target} has no primary key and no other that is unique and not null.")
    return key


def _refuse(connection: Connection, expansion: Expansion, triggers: str | None) -> None:
    place = {"target": expansion.target, "new": expansion.new}
    others = list(connection.scalars(text(_TRIGGERS), place | {"mark": rf"{MARK}\\000%"}))
    if others and triggers is None:
        raise ConfigurationError(
            f"Each row that is filled would fire triggers of {expansion.target}: {', '.join(others)}. Say whether they"
            " are to: triggers='fire' or 'silence'."
        )
    if triggers == "silence" and connection.scalar(text(_REFERS), place):
        raise ConfigurationError(
            f"{expansion.column} is part of a foreign key, whose triggers would be silenced, too: add it afterwards,"
            " NOT VALID, and validate it, or let triggers fire."
        )


def _patiently(expansion: Expansion, action: Callable[[], _T]) -> _T:
    """Do it again while somebody is in the way."""
    for attempt in range(_ATTEMPTS):
        try:
            return action()
        except (DatabaseError, DBAPIError) as error:
            if _sqlstate(error) not in _BUSY:
                raise
            if attempt == _ATTEMPTS - 1:
                raise LockTimeout(
                    f"somebody holds rows of {expansion.target} for too long; what was filled stays filled: end their"
                    " transaction, and run this again",
                    sqlstate=_sqlstate(error),
                ) from error
        ceiling = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2**attempt)
        time.sleep(random.uniform(0, ceiling))  # noqa: S311  no secret is drawn
    raise AssertionError("the last attempt returns or raises")


def _sqlstate(error: DatabaseError | DBAPIError) -> str | None:
    return getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None)

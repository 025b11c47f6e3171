"""Run statements on the scratch, each in a transaction of its own, and look at what it holds at its end."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.pq import DiagnosticField, ExecStatus

from arc_halo.autogenerate.linting.snapshots import Snapshot, snapshot
from arc_halo.autogenerate.linting.statements import Statement, split
from arc_halo.errors import SchemaNotAtHead

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

# From the weakest to the strongest.
LOCK_MODES: Final = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)
_LOCKS: Final = """
SELECT l.relation::bigint, l.mode FROM pg_catalog.pg_locks AS l
 WHERE l.pid = pg_catalog.pg_backend_pid() AND l.locktype = 'relation' AND l.granted
   AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())"""
_SYNTAX_ERROR: Final = b"42601"


@dataclass(frozen=True)
class Observation:
    """What a statement did.

    Attributes
    ----------
    tag
        PostgreSQL's word for its kind, such as ``ALTER TABLE``.
    locks
        The strongest mode by the oid of the relation. A statement that manages its own transactions, as with
        CONCURRENTLY, holds none at its end.
    messages
        What PostgreSQL tells at the level DEBUG1: among other things which table it reads whole, and why.
    is_atomic
        Whether it can be run in a transaction.
    has_timeout
        Whether it waits for a lock for a limited time only.
    error
        Why it failed; then nothing else is known.
    """

    statement: Statement
    before: Snapshot
    after: Snapshot
    tag: str = ""
    locks: Mapping[int, str] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    is_atomic: bool = True
    has_timeout: bool = False
    error: str | None = None


class Observer:
    """The scratch's one session."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        connection.autocommit = True
        # What a table is read for is told at this level, in words that are never translated.
        connection.execute("SET client_min_messages TO debug1")
        connection.execute("SET lock_timeout TO 0")  # what a revision says itself is to be seen
        connection.add_notice_handler(self._hear)
        self._messages: list[str] = []
        self._settings: list[str] = []
        self._revision: str | None = None
        self._known: Snapshot | None = None  # as the last statement left it

    def run(self, statements: Iterable[Statement]) -> None:
        """Run what is not to be looked at, a revision's statements in one transaction.

        Raises
        ------
        SchemaNotAtHead
            One fails on an empty database.
        """
        self._messages.clear()
        self._known = None
        for (revision, is_transactional), group in groupby(statements, _transaction):
            try:
                with self._connection.transaction() if is_transactional else nullcontext():
                    for each in group:
                        self._execute(each.text)
            except psycopg.Error as error:
                raise SchemaNotAtHead(
                    f"revision {revision or 'base'} cannot be run on an empty database: {_first_line(error)}"
                ) from error

    def observe(self, statement: Statement) -> Iterator[Observation]:
        """Run each statement of a text; the first that fails is the last."""
        if statement.revision != self._revision:
            self._revision = statement.revision
            self._settings.clear()
        for text in split(statement.text, self._parses):
            observation = self._observe(Statement(statement.revision, text, statement.is_transactional))
            yield observation
            if observation.error is not None:
                return

    def look(self) -> Snapshot:
        """What there is now."""
        return snapshot(self._connection)

    def _observe(self, statement: Statement) -> Observation:
        before = self._known or self.look()
        try:
            seen = self._in_transaction(statement, before)
        except psycopg.errors.ActiveSqlTransaction:
            seen = self._alone(statement, before)
        except psycopg.Error as error:
            seen = Observation(statement, before, before, error=_first_line(error))
        self._known = seen.after
        return seen

    def _in_transaction(self, statement: Statement, before: Snapshot) -> Observation:
        """Committed at once, so that the locks of each statement are seen by themselves."""
        with self._connection.transaction():
            if statement.is_transactional:
                for setting in self._settings:
                    self._execute(setting)
            self._messages.clear()
            tag = self._execute(statement.text)
            locks = self._locks()
            (timeout,) = self._connection.execute("SHOW lock_timeout").fetchone() or ("0",)
            messages = tuple(self._messages)
            after = self.look()
        if tag == "SET" and statement.is_transactional:
            self._settings.append(statement.text)  # SET LOCAL would have ended with the transaction
        return Observation(statement, before, after, tag, locks, messages, has_timeout=timeout != "0")

    def _alone(self, statement: Statement, before: Snapshot) -> Observation:
        self._messages.clear()
        try:
            tag = self._execute(statement.text)
        except psycopg.Error as error:
            return Observation(statement, before, self.look(), is_atomic=False, error=_first_line(error))
        messages = tuple(self._messages)
        return Observation(statement, before, self.look(), tag, {}, messages, is_atomic=False)

    def _execute(self, text: str) -> str:
        # As bytes, without parameters: % means nothing, and nothing is prepared.
        return self._connection.execute(text.encode(), prepare=False).statusmessage or ""

    def _locks(self) -> dict[int, str]:
        strongest: dict[int, str] = {}
        for oid, mode in self._connection.execute(_LOCKS):
            if mode in LOCK_MODES and rank(mode) > rank(strongest.get(oid)):
                strongest[oid] = mode
        return strongest

    def _parses(self, text: str) -> bool:
        """Whether PostgreSQL takes it for one statement; names that it does not find are no matter."""
        result = self._connection.pgconn.prepare(b"", text.encode())
        if result.status == ExecStatus.COMMAND_OK:
            return True
        return result.error_field(DiagnosticField.SQLSTATE) != _SYNTAX_ERROR

    def _hear(self, said: psycopg.errors.Diagnostic) -> None:
        if said.message_primary is not None:
            self._messages.append(said.message_primary)


def rank(mode: str | None) -> int:
    """How strong a lock is; -1 is none."""
    return -1 if mode is None else LOCK_MODES.index(mode)


def _transaction(statement: Statement) -> tuple[str | None, bool]:
    """In which transaction it is run: its revision's, or one of its own."""
    return statement.revision, statement.is_transactional and statement.revision is not None


def _first_line(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error).partition("\n")[0]

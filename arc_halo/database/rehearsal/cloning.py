"""Clones of a database on a server: made as a template's copy or out of a dump, and dropped again."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from arc_halo.database.migrate import SCHEMA, VERSION_TABLE, migration_engine
from arc_halo.database.rehearsal import dumping, neon
from arc_halo.database.url import libpq_string, printable, require_direct
from arc_halo.errors import ConfigurationError, DatabaseError, DatabaseUnavailable

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection

Method = Literal["template", "dump", "neon"]
Report = Callable[[str, int, int], None]
"""Told of a phase, how many bytes are done and of how many."""

MARK: Final = "_rehearsal_"
_RANDOM_BYTES: Final = 4
_NAME_BYTES: Final = 63  # PostgreSQL cuts longer ones
# A copy by files wants a checkpoint before and after; one by the write-ahead log writes all of it there.
_FILE_COPY_NBYTES: Final = 256 << 20
_GONE_ATTEMPTS: Final = 20  # a client that has just hung up is still seen for a moment
_GONE_SECONDS: Final = 0.05
_IN_USE: Final = "55006"
_PROVIDERS: Final = {"i": "icu", "b": "builtin"}
_LOCALE_OPTIONS: Final = {"i": "ICU_LOCALE", "b": "BUILTIN_LOCALE"}
_CLIENTS: Final = text("""
SELECT pid, application_name FROM pg_catalog.pg_stat_activity
 WHERE datname = :name AND backend_type IS DISTINCT FROM 'autovacuum worker' ORDER BY pid""")
_PREPARED: Final = text("SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = :name ORDER BY gid")
# What differs between PostgreSQL 16 and 17 is the name of one column.
_LOCALE: Final = text("""
SELECT pg_catalog.pg_encoding_to_char(encoding), datcollate, datctype, datlocprovider,
       coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale')
  FROM pg_catalog.pg_database AS d WHERE datname = :name""")
_SIZE: Final = text("SELECT pg_catalog.pg_database_size(CAST(:name AS name))")
_LOCK: Final = text("SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended(:name, 0))")
_UNLOCK: Final = text("SELECT pg_catalog.pg_advisory_unlock(pg_catalog.hashtextextended(:name, 0))")
_LEFTOVERS: Final = text("""
SELECT datname, pg_catalog.pg_database_size(oid) FROM pg_catalog.pg_database
 WHERE starts_with(CAST(datname AS text), :start) AND length(CAST(datname AS text)) = :length
   AND datname ~ '_[0-9a-f]+$' AND pg_catalog.pg_has_role(datdba, 'USAGE')
 ORDER BY datname""")
_VERSIONS: Final = f"{SCHEMA}.{VERSION_TABLE}"


@dataclass(frozen=True, slots=True)
class Clone:
    """A copy of a database, how it was made and how long that took."""

    url: URL
    name: str
    method: Method
    seconds: float
    nbytes: int


@dataclass(frozen=True, slots=True)
class Leftover:
    """The clone of a rehearsal that is over, and whether it was dropped: somebody may be connected to it."""

    name: str
    nbytes: int
    is_dropped: bool


def clone_name(source: str) -> str:
    """A new name for a clone of the database ``source``, whose name it begins with as far as there is room."""
    return f"{_start(source)}{secrets.token_hex(_RANDOM_BYTES)}"


@contextmanager
def cloned(
    source: URL,
    *,
    by: Method | None = None,
    on: URL | None = None,
    schema_only: bool = False,
    keep: bool = False,
    report: Report | None = None,
) -> Iterator[Clone]:
    """A clone of ``source`` for as long as the block runs, however that ends.

    Parameters
    ----------
    by
        By default as a template's copy where nobody is connected to the source, else out of a dump.
    on
        Another server to put it on, by the URL of a database there.
    schema_only
        Leave the rows behind.
    keep
        Do not drop it.
    report
        Told of bytes as they come.

    Raises
    ------
    ConfigurationError
        The ways that were named do not go together, or there is no program or key for them.
    DatabaseError
        The source has clients, or a server refused.
    """
    require_direct(source, "a rehearsal")
    if by == "neon" and on is not None:
        raise ConfigurationError("a branch at Neon is where its parent is: leave --on out, or clone by dump")
    if by == "template" and (on is not None or schema_only):
        raise ConfigurationError("a template is copied whole, on its own server: clone by dump for another or for less")
    name = clone_name(str(source.database))
    began = time.monotonic()
    with ExitStack() as stack:
        if by == "neon":
            url = stack.enter_context(neon.branched(source, name, schema_only=schema_only, keep=keep))
            method: Method = "neon"
        else:
            is_copy_wanted = by != "dump" and on is None and not schema_only
            url, method = stack.enter_context(
                _on_server(source, name, on=on, keep=keep, report=report, schema_only=schema_only,
                           by=by or ("template" if is_copy_wanted else "dump"), may_dump=by is None)
            )  # fmt: skip
        if schema_only:
            _copy_revision(source, url)
        with migration_engine(url).connect() as connection:
            nbytes = connection.scalar(_SIZE, {"name": url.database}) or 0
        yield Clone(url, name, method, time.monotonic() - began, nbytes)


def clean(source: URL, on: URL | None = None) -> list[Leftover]:
    """Drop the clones of ``source`` that nobody uses; those in use are told and stay."""
    found = []
    with beside(on or source, source) as connection:
        start = _start(str(source.database))
        like = {"start": start, "length": len(start) + 2 * _RANDOM_BYTES}
        for name, nbytes in connection.execute(_LEFTOVERS, like).all():
            found.append(Leftover(name, nbytes, is_dropped=_drop_unused(connection, name)))
    return found


@contextmanager
def beside(url: URL, source: URL) -> Iterator[Connection]:
    """A connection to the server of ``url`` that statements about databases are sent by, to none that is cloned.

    Raises
    ------
    DatabaseUnavailable
        Neither ``postgres`` nor ``template1`` takes a connection.
    """
    problem: DatabaseUnavailable | None = None
    for name in ("postgres", "template1"):
        if name == source.database:
            continue
        engine = migration_engine(url.set(database=name)).execution_options(isolation_level="AUTOCOMMIT")
        try:
            connection = engine.connect()
        except DatabaseUnavailable as error:
            problem = problem or error
            continue
        with connection:
            connection.execute(text("SET statement_timeout TO 0"))  # of the settings: a copy may take longer
            yield connection
        return
    assert problem is not None
    raise problem


@contextmanager
def _on_server(
    source: URL,
    name: str,
    *,
    by: Method,
    may_dump: bool,
    on: URL | None,
    schema_only: bool,
    keep: bool,
    report: Report | None,
) -> Iterator[tuple[URL, Method]]:
    """A new database, dropped at the end; its advisory lock tells others that it is no leftover."""
    target = (on or source).set(database=name)
    with beside(target, source) as connection:
        connection.scalar(_LOCK, {"name": name})
        is_whole = False
        try:
            method = _copy_or_not(connection, source, name, report, may_dump=may_dump) if by == "template" else by
            if method == "dump":
                _fill(connection, source, target, report, schema_only=schema_only, is_elsewhere=on is not None)
            is_whole = True
            yield target, method
        finally:
            if not (keep and is_whole):
                _drop(target, source, name, connection)


def _copy_or_not(connection: Connection, source: URL, name: str, report: Report | None, *, may_dump: bool) -> Method:
    """Copy the source as a template; where that is refused and a dump will do, say so."""
    original = str(source.database)
    try:
        if clients := _clients(connection, original):
            raise _refusal(source, clients)
        nbytes = connection.scalar(_SIZE, {"name": original}) or 0
        if report is not None:
            report("clone", 0, nbytes)
        strategy = "file_copy" if nbytes > _FILE_COPY_NBYTES else "wal_log"
        quoted = connection.dialect.identifier_preparer.quote
        try:
            _run(connection, f"CREATE DATABASE {quoted(name)} TEMPLATE {quoted(original)} STRATEGY {strategy}")
        except DBAPIError as error:
            if isinstance(error.orig, psycopg.errors.ObjectInUse):
                raise _refusal(source, _clients(connection, original)) from error
            raise
        if report is not None:
            report("clone", nbytes, nbytes)
    except DatabaseError as error:
        if may_dump and error.sqlstate == _IN_USE:
            return "dump"
        raise
    return "template"


def _fill(
    connection: Connection, source: URL, target: URL, report: Report | None, *, schema_only: bool, is_elsewhere: bool
) -> None:
    """Make an empty database and restore a dump into it; on the same server it sorts and compares as the source."""
    options = " ENCODING 'UTF8'"
    if is_elsewhere:
        with migration_engine(source).connect() as there:
            nbytes = there.scalar(_SIZE, {"name": source.database}) or 0
    else:
        nbytes = connection.scalar(_SIZE, {"name": source.database}) or 0
        options = _locale(connection, str(source.database))
    quoted = connection.dialect.identifier_preparer.quote
    _run(connection, f"CREATE DATABASE {quoted(str(target.database))} TEMPLATE template0{options}")
    dumping.restore(
        source,
        target,
        schema_only=schema_only,
        is_elsewhere=is_elsewhere,
        report=None if report is None else lambda done: report("clone", done, max(done, nbytes)),
    )


def _locale(connection: Connection, name: str) -> str:
    encoding, collation, characters, provider, locale = connection.execute(_LOCALE, {"name": name}).one()
    given = {"ENCODING": encoding, "LC_COLLATE": collation, "LC_CTYPE": characters}
    if provider in _PROVIDERS:
        given |= {"LOCALE_PROVIDER": _PROVIDERS[provider], _LOCALE_OPTIONS[provider]: locale}
    return "".join(f" {option} '{value.replace(chr(39), chr(39) * 2)}'" for option, value in given.items())


def _clients(connection: Connection, name: str) -> list[str]:
    """Who is connected to a database, and what else keeps it from being copied."""
    for attempt in range(_GONE_ATTEMPTS):
        rows = connection.execute(_CLIENTS, {"name": name}).all()
        found = [f"pid {pid} ({application or 'no name'})" for pid, application in rows]
        found += [f"the prepared transaction {gid}" for gid in connection.scalars(_PREPARED, {"name": name})]
        if not found:
            break
        if attempt < _GONE_ATTEMPTS - 1:
            time.sleep(_GONE_SECONDS)
    return found


def _refusal(source: URL, clients: list[str]) -> DatabaseError:
    return DatabaseError(
        f"PostgreSQL copies a database only while nobody is connected, and to {printable(source)} there is "
        f"{', '.join(clients) or 'somebody'}: clone by dump (--by dump), which reads beside others, let them leave, or "
        "end them with pg_terminate_backend",
        sqlstate=_IN_USE,
    )


def _drop(target: URL, source: URL, name: str, connection: Connection) -> None:
    quoted = connection.dialect.identifier_preparer.quote(name)
    statement = f"DROP DATABASE IF EXISTS {quoted} WITH (FORCE)"
    try:
        _run(connection, statement)
    except (DatabaseError, SQLAlchemyError):  # that connection may have been lost meanwhile: it was idle for long
        with beside(target, source) as another:
            _run(another, statement)


def _drop_unused(connection: Connection, name: str) -> bool:
    """Drop a database without force, unless a rehearsal goes on in it."""
    if not connection.scalar(_LOCK, {"name": name}):
        return False
    try:
        _run(connection, f"DROP DATABASE IF EXISTS {connection.dialect.identifier_preparer.quote(name)}")
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.errors.ObjectInUse):
            return False
        raise
    finally:
        connection.scalar(_UNLOCK, {"name": name})
    return True


def _copy_revision(source: URL, target: URL) -> None:
    """Tell a clone without rows at which revision it is."""
    with psycopg.connect(libpq_string(source)) as there, psycopg.connect(libpq_string(target)) as here:
        if there.execute("SELECT to_regclass(%s)", [_VERSIONS]).fetchone() == (None,):
            return
        rows = there.execute(f"SELECT version_num FROM {_VERSIONS}").fetchall()  # noqa: S608  names of ours
        here.execute(f"DELETE FROM {_VERSIONS}")  # noqa: S608  as above
        here.cursor().executemany(f"INSERT INTO {_VERSIONS} (version_num) VALUES (%s)", rows)  # noqa: S608  as above


def _run(connection: Connection, statement: str) -> None:
    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})  # % in a name means nothing


def _start(source: str) -> str:
    room = _NAME_BYTES - len(MARK) - 2 * _RANDOM_BYTES
    return source.encode()[:room].decode(errors="ignore") + MARK

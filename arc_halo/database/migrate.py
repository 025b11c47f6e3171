"""Alembic, called from Python: where the revisions are, how a database is brought to one, and by whom at a time."""

from __future__ import annotations

import io
import threading
import time
from argparse import Namespace
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, event, text
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from arc_halo.database.backoff import delays
from arc_halo.database.embedded import embedded_server
from arc_halo.database.engine import new_engine
from arc_halo.database.url import configured_url, parse_url, printable, require_direct
from arc_halo.errors import DatabaseError, LockTimeout, SchemaNotAtHead
from arc_halo.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCHEMA: Final = "arc_halo"
VERSION_TABLE: Final = "alembic_version"
# Not arc_halo: Alembic calls the path's first schema None and would see no tables of ours. pg_catalog first, so that an
# unqualified CREATE TABLE fails instead of landing in public; public for pgvector's type and operators.
SEARCH_PATH: Final = "pg_catalog, public"
# "arc_halo" in ASCII. Advisory locks are one space per database, shared with every other application in it.
LOCK_KEY: Final = 0x6172635F68616C6F
LOCK_WAIT_SECONDS: Final = 600.0
# No setting: each revision says the same, for plain `alembic` and the SQL of --sql.
LOCK_TIMEOUT: Final = "5s"
_LOCK_POLL_SECONDS: Final = 0.2
_LOCK_TIMEOUT_ATTEMPTS: Final = 4

_alembic_lock = threading.Lock()  # alembic.context is one per process
_locked: ContextVar[frozenset[str]] = ContextVar("_locked", default=frozenset())


def script_folder() -> Path:
    """The folder of ``env.py`` and ``versions/``: the checkout this package sits in, else the copy in the wheel.

    Raises
    ------
    SchemaNotAtHead
        The installation carries neither.
    """
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent
    # Beside an installed package stands site-packages, where `alembic` is the library: pyproject.toml tells them apart.
    candidates = [checkout / "alembic"] if (checkout / "pyproject.toml").is_file() else []
    for folder in (*candidates, package / "_alembic"):
        if (folder / "env.py").is_file():
            return folder
    raise SchemaNotAtHead(f"no migrations are installed beside {package}; install arc-halo again")


def upgrade(target: Engine | URL | str, revision: str = "head", *, allow_data_loss: bool = False) -> None:
    """Bring the database at ``target`` to ``revision``; a database already there is left alone.

    Raises
    ------
    LockTimeout
        Somebody held a table or the migration lock for too long; what was not done yet can be run again.
    SchemaNotAtHead
        The database or the code is at a revision from which ``revision`` cannot be reached.
    DataLossRefused
        A revision says of itself that it loses data, and ``allow_data_loss`` was not said; nothing was done.
    """
    options = _loss_options(allow_data_loss=allow_data_loss)
    url = _url(target)
    waits = delays(_LOCK_TIMEOUT_ATTEMPTS)
    # Around the attempts: the wait for another migration is long already, and is not to be multiplied by them.
    with migration_lock(migration_engine(url)):
        while True:
            try:
                # One transaction per revision: those done stay done, and the next round goes on from there.
                return _alembic(url, lambda config: command.upgrade(config, revision), **options)
            except LockTimeout:
                wait = next(waits, None)
                if wait is None:
                    raise
                time.sleep(wait)


def downgrade(target: Engine | URL | str, revision: str, *, allow_data_loss: bool = False) -> None:
    """Take the database back to ``revision``.

    Raises
    ------
    DataLossRefused
        Rows would be dropped, and ``allow_data_loss`` was not said.
    """
    options = _loss_options(allow_data_loss=allow_data_loss)
    _alembic(target, lambda config: command.downgrade(config, revision), **options)


def check(target: Engine | URL | str) -> None:
    """Compare the database with what the code declares.

    Raises
    ------
    SchemaNotAtHead
        They differ; the message lists how.
    """
    _alembic(target, command.check)


def heads() -> tuple[str, ...]:
    """The revisions the code is at: one, unless branches were left unmerged."""
    return tuple(sorted(_scripts().get_heads()))


def current(target: Engine | URL | str) -> tuple[str, ...]:
    """The revisions the database is at; empty before the first migration."""
    return _current(target if isinstance(target, Engine) else migration_engine(parse_url(target)))


def is_at_head(engine: Engine) -> bool:
    """Whether the database is at the code's one head, by one query."""
    expected = heads()
    return len(expected) == 1 and _current(engine) == expected


def known_revisions(engine: Engine) -> tuple[str, ...]:
    """The revisions the database is at, all of them known to the code.

    Raises
    ------
    SchemaNotAtHead
        One is not: a newer version of the code was here.
    """
    found = _current(engine)
    known = {script.revision for script in _scripts().walk_revisions()}
    if unknown := [revision for revision in found if revision not in known]:
        raise SchemaNotAtHead(
            f"{printable(engine.url)} is at revision {', '.join(unknown)}, which this version of arc-halo does not "
            "know; install the newer version that made it, put the missing revision file back, or restore a dump"
        )
    return found


def way_up(found: tuple[str, ...], revision: str = "head") -> list[Script]:
    """The revisions between those ``found`` in a database and ``revision``, in the order in which they are run.

    Raises
    ------
    SchemaNotAtHead
        ``revision`` cannot be reached from there.
    """
    try:
        # None is the base, as what Alembic's own upgrade starts from.
        return [*_scripts().iterate_revisions(revision, found or None, implicit_base=True)][::-1]
    except RevisionError as error:
        raise SchemaNotAtHead(f"{error}: `arc-halo db current` says where it is") from error


def ensure_at_head(engine: Engine) -> None:
    """Ask, in one query, whether code and database agree.

    Raises
    ------
    SchemaNotAtHead
        They do not; the message says which of the two is behind, and what to do.
    """
    found, expected = known_revisions(engine), heads()
    if len(expected) > 1:
        raise SchemaNotAtHead(
            f"the code has several heads, {', '.join(expected)}: merge them with `alembic merge heads`"
        )
    if found != expected:
        state = f"is at revision {', '.join(found)}" if found else "has no Arc-Halo schema yet"
        raise SchemaNotAtHead(
            f"{printable(engine.url)} {state}, and the code is at {', '.join(expected)}; run `arc-halo db upgrade`"
        )


def alembic_config(url: URL | None = None) -> Config:
    """What Alembic is told: where the revisions are, for which database, and to say nothing."""
    config = Config(stdout=io.StringIO(), output_buffer=io.StringIO())
    config.set_main_option("script_location", str(script_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["url"] = url  # not an option: configparser would read the % of an escaped password
    return config


def environment_url(config: Config) -> URL:
    """The database a run of Alembic is about, for ``env.py``.

    In this order: ``config.attributes["url"]``, ``-x url=``, ``sqlalchemy.url`` of the ini file, the settings, and the
    embedded server, which is started but not migrated, and stops when the process ends.
    """
    given = config.attributes.get("url") or _x_arguments(config).get("url") or config.get_main_option("sqlalchemy.url")
    if given:
        return parse_url(given)
    settings = load_settings()
    return configured_url(settings) or embedded_server(settings.home).acquire()


def migration_engine(url: URL) -> Engine:
    """An engine for migrations: unpooled, one ``search_path`` whatever role and database say, and ``lock_timeout``.

    Raises
    ------
    ConfigurationError
        ``url`` is a pooler's.
    """
    require_direct(url, "a migration")
    engine = new_engine(url, load_settings(), poolclass=NullPool)

    def pin_session(connection: psycopg.Connection[Any], _record: object) -> None:
        connection.autocommit = True
        connection.execute(f"SET search_path TO {SEARCH_PATH}")
        connection.execute(f"SET lock_timeout TO '{LOCK_TIMEOUT}'")
        connection.autocommit = False

    event.listen(engine, "connect", pin_session, insert=True)  # before SQLAlchemy asks for the default schema
    return engine


@contextmanager
def migration_lock(engine: Engine, wait_seconds: float = LOCK_WAIT_SECONDS) -> Iterator[None]:
    """Be the only one who migrates this database; inside a block that already is, do nothing.

    Polled, since a waiting ``pg_advisory_lock`` holds a snapshot that CREATE INDEX CONCURRENTLY waits for; on a
    connection of its own, since a transaction-level lock would be lost at the first ``autocommit_block()``.

    Raises
    ------
    LockTimeout
        Another migration still runs after ``wait_seconds``.
    """
    key = engine.url.render_as_string(hide_password=True)
    held = _locked.get()
    if key in held:
        yield
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        deadline = time.monotonic() + wait_seconds
        while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY}):
            if time.monotonic() > deadline:
                raise LockTimeout(
                    f"another migration of {printable(engine.url)} still runs after {wait_seconds:g} s; see "
                    f"{_holder(connection)} in pg_stat_activity, then run this again"
                )
            time.sleep(_LOCK_POLL_SECONDS)
        token = _locked.set(held | {key})
        try:
            yield
        finally:
            _locked.reset(token)
            # Where this connection was lost, its lock went with it: what the block did or raised is what counts.
            with suppress(DatabaseError, SQLAlchemyError):
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK_KEY})


def _holder(connection: Connection) -> str:
    """Who holds the migration lock now, as an error names it."""
    statement = (
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 "
        "AND classid = (:key >> 32) AND objid = (:key & 4294967295) "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    pid = connection.scalar(text(statement), {"key": LOCK_KEY})
    return "who held the lock until now" if pid is None else f"pid {pid}"


def _loss_options(*, allow_data_loss: bool) -> dict[str, str]:
    return {"allow_data_loss": "1"} if allow_data_loss else {}


def _alembic(target: Engine | URL | str, run: Callable[[Config], object], **x_arguments: str) -> None:
    """Run one of Alembic's commands in silence, its refusals as errors of ours."""
    url = _url(target)
    engine = migration_engine(url)
    config = alembic_config(url)
    config.cmd_opts = Namespace(x=[f"{name}={value}" for name, value in x_arguments.items()])
    try:
        # In this order, here and in connect(): two threads that took them in opposite orders would wait for ever.
        with migration_lock(engine), _alembic_lock:
            known_revisions(engine)
            run(config)
    except CommandError as error:
        raise SchemaNotAtHead(f"{printable(url)}: {error}") from error


def _url(target: Engine | URL | str) -> URL:
    return target.url if isinstance(target, Engine) else parse_url(target)


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(alembic_config())


def _current(engine: Engine) -> tuple[str, ...]:
    try:
        with engine.connect() as connection:
            return tuple(sorted(connection.scalars(text(f"SELECT version_num FROM {SCHEMA}.{VERSION_TABLE}"))))  # noqa: S608
    except ProgrammingError as error:
        if isinstance(error.orig, psycopg.errors.UndefinedTable):
            return ()
        raise


def _x_arguments(config: Config) -> dict[str, str]:
    given = getattr(config.cmd_opts, "x", None) or []
    return dict(argument.partition("=")[::2] for argument in given)

"""Engines: pool, patience while connecting, typed errors, survival of ``fork``."""

from __future__ import annotations

import os
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool, Pool, QueuePool

from arc_halo.database.backoff import delays
from arc_halo.database.translate import on_handle_error
from arc_halo.database.url import connect_arguments, printable, split_secrets
from arc_halo.errors import DatabaseUnavailable, PoolExhausted

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL
    from sqlalchemy.engine import Dialect
    from sqlalchemy.pool import PoolProxiedConnection

    from arc_halo.settings import Settings

# Neon suspends after 300 s without work and cuts what is open.
_RECYCLE_SECONDS: Final = 240
_ATTEMPTS_AFTER_PASSWORD: Final = 2

_Connection = TypeVar("_Connection")
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class TypedQueuePool(QueuePool):
    """SQLAlchemy's pool, whose time-out is an error of ours."""

    def connect(self) -> PoolProxiedConnection:
        """Check a connection out.

        Raises
        ------
        PoolExhausted
            None came back within the pool's timeout.
        """
        try:
            return super().connect()
        except PoolTimeout as error:
            raise PoolExhausted(
                f"all {self.checkedout()} pooled connections stayed in use for {self.timeout():g} s; close sessions "
                "sooner, or raise ARC_HALO_POOL_SIZE and ARC_HALO_MAX_OVERFLOW"
            ) from error


def application_engine(url: URL, settings: Settings) -> Engine:
    """The engine of ordinary work: pooled, and the session's ``search_path`` left as it is."""
    return new_engine(
        url,
        settings,
        poolclass=TypedQueuePool,
        pool_pre_ping=True,
        pool_recycle=_RECYCLE_SECONDS,
        pool_size=settings.pool_size,
        max_overflow=settings.max_overflow,
        pool_timeout=settings.pool_timeout_seconds,
    )


def new_engine(url: URL, settings: Settings, *, poolclass: type[Pool], **pool_options: Any) -> Engine:
    """The one place where an engine is made; ``url`` has been through `parse_url`."""
    visible, secrets = split_secrets(url)
    engine = create_engine(
        visible,
        connect_args=connect_arguments(url, settings) | secrets,
        hide_parameters=True,
        poolclass=poolclass,
        **pool_options,
    )
    event.listen(engine, "handle_error", on_handle_error)
    event.listen(engine, "do_connect", partial(_on_do_connect, visible, settings.connect_attempts))
    _engines.add(engine)
    return engine


def sibling_engine(engine: Engine) -> Engine:
    """An engine on the same database whose connections do not count against the first one's pool, and are not kept."""
    pool = NullPool(engine.pool._creator, dialect=engine.dialect)  # noqa: SLF001  no public way leaves its limits behind
    sibling = Engine(pool, engine.dialect, engine.url, hide_parameters=True)
    event.listen(sibling, "handle_error", on_handle_error)
    _engines.add(sibling)
    return sibling


def reading_engine(engine: Engine) -> Engine:
    """An engine on the same database for statements that only read: each is one round trip.

    Statements are transactions of their own, and a pooled connection is not asked whether it still works: whoever finds
    one that does not takes another.
    """
    pool = engine.pool.recreate()  # as large as the other
    pool._pre_ping = False  # noqa: SLF001  no public way takes it away
    reading = Engine(pool, engine.dialect, engine.url, hide_parameters=True)
    event.listen(reading, "handle_error", on_handle_error)
    _engines.add(reading)
    return reading.execution_options(isolation_level="AUTOCOMMIT")


def _on_do_connect(
    url: URL, attempts: int, dialect: Dialect, _record: object, arguments: list[Any], options: dict[str, Any]
) -> Any:
    return connect_patiently(partial(dialect.connect, *arguments, **options), attempts, where=printable(url))


def connect_patiently(connect: Callable[[], _Connection], attempts: int, *, where: str) -> _Connection:
    """Call ``connect`` until it succeeds, waiting in between as `delays` says.

    libpq gives no SQLSTATE while connecting, so what cannot be told apart is tried again: a server that starts, that is
    full, that cannot be reached yet. Never tried again: a time-out, which has already taken all the time the caller
    allowed, and a password that was wanted but not given. A refusal after the password was sent is nearly always a
    wrong password or database and gets one more try.

    Raises
    ------
    DatabaseUnavailable
        The last attempt failed, too; ``where`` is named in the message.
    """
    waits = delays(attempts)
    for attempt in range(1, attempts + 1):
        try:
            return connect()
        except psycopg.OperationalError as error:
            if attempt >= _allowed(error, attempts):
                tried = f" after {attempt} attempts" if attempt > 1 else ""
                raise DatabaseUnavailable(
                    f"cannot connect to {where}{tried}: {_reason(error)}; check that the server runs, and the URL's "
                    "host, port, user, password and database",
                    sqlstate=error.sqlstate,
                ) from error
        time.sleep(next(waits))
    raise AssertionError("attempts is positive")


def _allowed(error: psycopg.OperationalError, attempts: int) -> int:
    """How many attempts in all make sense after ``error``."""
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return 1
    if error.pgconn is None:
        return attempts
    if error.pgconn.needs_password:
        return 1
    return min(attempts, _ATTEMPTS_AFTER_PASSWORD) if error.pgconn.used_password else attempts


def _reason(error: psycopg.OperationalError) -> str:
    return str(error).partition("\n")[0].strip()


def _dispose_in_child() -> None:
    # A connection shared with the parent would mix two conversations; dropped without closing, the parent's lives on.
    for engine in list(_engines):
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_dispose_in_child)

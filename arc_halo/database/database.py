"""A connected database: what a notebook, the command line and a service hold on to."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy.orm import Session

from arc_halo.database import migrate as migrations
from arc_halo.database.embedded import EmbeddedServer, embedded_server
from arc_halo.database.engine import application_engine, reading_engine
from arc_halo.database.transaction import DEFAULT_ATTEMPTS, run_reading, run_transaction
from arc_halo.database.url import configured_url, parse_url, printable
from arc_halo.errors import EmbeddedServerError
from arc_halo.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from sqlalchemy import URL, Engine
    from sqlalchemy.engine.interfaces import IsolationLevel

Result = TypeVar("Result")
_DUMPS_KEPT: Final = 3
BLOB_URL_KEY: Final = "arc_halo.blob_url"
"""Where a session's ``info`` says which object store payloads are in."""
_log = logging.getLogger(__name__)


class Database:
    """An engine, and the server behind it where that is ours; made by `connect`.

    Examples
    --------
    >>> with connect() as database, database.session() as session:  # doctest: +SKIP
    ...     session.scalars(select(Model)).all()
    """

    def __init__(self, engine: Engine, server: EmbeddedServer | None = None, blob_url: str | None = None) -> None:
        self.engine = engine
        self.blob_url = blob_url
        self._server = server
        self._reading = reading_engine(engine)

    @property
    def url(self) -> str:
        """Where it is, with secrets hidden."""
        return printable(self.engine.url)

    @property
    def is_embedded(self) -> bool:
        """Whether the server is the one on this machine that Arc-Halo runs."""
        return self._server is not None

    def session(self, **options: Any) -> Session:
        """A new SQLAlchemy session; ``options`` are Session's own.

        Objects keep their loaded values after a commit, so a notebook may show them once the session is closed.
        """
        info = {BLOB_URL_KEY: self.blob_url} | options.pop("info", {})
        return Session(self.engine, info=info, **({"expire_on_commit": False} | options))

    def transaction(
        self,
        unit: Callable[[Session], Result],
        *,
        attempts: int = DEFAULT_ATTEMPTS,
        isolation_level: IsolationLevel | None = None,
    ) -> Result:
        """Run ``unit(session)`` and commit, again after a conflict or a lost connection; see `run_transaction`."""
        return run_transaction(self.session, unit, attempts=attempts, isolation_level=isolation_level)

    def read(self, unit: Callable[[Session], Result], *, attempts: int = DEFAULT_ATTEMPTS) -> Result:
        """Run ``unit(session)``, which only reads, over again where the link was lost.

        Each of its statements is a transaction and a round trip of its own, and sees what is committed then; nothing is
        asked of the server before the first or after the last.

        Raises
        ------
        DatabaseUnavailable
            The last attempt failed, too.
        """
        engine = self._reading
        info = {BLOB_URL_KEY: self.blob_url}
        return run_reading(lambda: Session(engine, info=dict(info), expire_on_commit=False), unit, attempts=attempts)

    def close(self) -> None:
        """Close every connection; the embedded server stops when nobody else uses it. Closing twice does nothing."""
        self.engine.dispose()
        self._reading.dispose()
        if self._server is not None:
            server, self._server = self._server, None
            server.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Database({self.url!r})"

    def _repr_html_(self) -> str:
        kind = "embedded PostgreSQL" if self.is_embedded else "PostgreSQL"
        return f"<b>Arc-Halo database</b> on {kind}: <code>{escape(self.url)}</code>"


def connect(
    url: str | URL | None = None,
    *,
    migrate: bool | None = None,
    allow_data_loss: bool = False,
    blob_url: str | None = None,
) -> Database:
    """Connect to the database at ``url``, to the configured one, or to the embedded server.

    Parameters
    ----------
    url
        Else ``ARC_HALO_DATABASE_URL``, then ``DATABASE_URL``, then the embedded server under ``ARC_HALO_HOME``.
    migrate
        Bring the schema to the code's revision. By default only the embedded database is, after a dump into
        ``ARC_HALO_HOME/backups`` if it holds an older one; the newest three dumps are kept.
    allow_data_loss
        Migrate also by revisions that say of themselves that they lose data.
    blob_url
        An object store for payloads, ``file://``, ``s3://``, ``gs://`` or ``az://``; else ``ARC_HALO_BLOB_URL``, else
        payloads are in the database.

    Raises
    ------
    ConfigurationError
        The URL or a setting cannot be used.
    DatabaseUnavailable, EmbeddedServerError
        There is no server, or it does not answer.
    SchemaNotAtHead
        The schema is not at the code's revision, and ``migrate`` does not say that it may be brought there.
    DataLossRefused
        A revision on the way there says that it loses data, and that was not allowed.
    """
    settings = load_settings()
    target = parse_url(url) if url is not None else configured_url(settings)
    server = None
    if target is None:
        server = embedded_server(settings.home)
        target = server.acquire()
    if blob_url is None and settings.blob_url is not None:
        blob_url = settings.blob_url.get_secret_value()
    database = Database(application_engine(target, settings), server, blob_url)
    try:
        if server is not None if migrate is None else migrate:
            _bring_to_head(database.engine, target, server, allow_data_loss=allow_data_loss)
        else:
            migrations.ensure_at_head(database.engine)
    except BaseException:
        database.close()
        raise
    return database


def _bring_to_head(engine: Engine, url: URL, server: EmbeddedServer | None, *, allow_data_loss: bool) -> None:
    """Migrate if need be; of several processes one does it, and the others find it done."""
    if migrations.is_at_head(engine):
        return
    with migrations.migration_lock(migrations.migration_engine(url)):
        if migrations.is_at_head(engine):
            return
        found = migrations.known_revisions(engine)
        if server is not None and found:
            _log.warning(
                "the embedded database is at %s: it is dumped to %s and upgraded", found[0], _dump(server, found)
            )
        migrations.upgrade(url, allow_data_loss=allow_data_loss)
    migrations.ensure_at_head(engine)


def _dump(server: EmbeddedServer, found: tuple[str, ...]) -> Path:
    """Keep the database as it was before a migration, for `pg_restore`, and of older dumps the newest."""
    folder = server.home / "backups"
    whole = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{'-'.join(found)}.dump"
    partial = whole.with_suffix(".partial")
    _make_private(folder, partial)
    try:
        server.run_tool("pg_dump", "--format=custom", f"--file={partial}")
    except BaseException:
        partial.unlink()
        raise
    partial.rename(whole)
    for old in sorted(folder.glob("[0-9]*T[0-9]*Z-*.dump"))[:-_DUMPS_KEPT]:
        old.unlink()
    return whole


def _make_private(folder: Path, file: Path) -> None:
    """Make the folder and the file of a dump, which holds every tenant's rows, for their owner alone."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)  # an older version left it open
        file.touch(mode=0o600)  # pg_dump empties what is there and keeps its mode
    except OSError as error:
        raise EmbeddedServerError(
            f"the database cannot be dumped into {folder} before it is upgraded: {error.strerror}; make that folder "
            "your own, or move it away"
        ) from error

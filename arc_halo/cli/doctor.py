"""What `arc-halo db doctor` looks at, and what it advises."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from arc_halo.cli.doctor_blobs import BlobStoreState, examine_blobs
from arc_halo.cli.output import count, size
from arc_halo.database.engine import application_engine
from arc_halo.database.migrate import current, ensure_at_head, heads
from arc_halo.database.url import is_local, is_pooled
from arc_halo.errors import SchemaNotAtHead
from arc_halo.settings import load_settings

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from arc_halo.cli.invocation import Target
    from arc_halo.settings import Settings

OLDEST_SERVER: Final = 16
OLDEST_PGVECTOR: Final = (0, 8, 3)
_SHOWN_TABLES: Final = 10

_TABLES = """
SELECT coalesce(p.inhparent, c.oid)::pg_catalog.regclass::text AS name, sum(pg_catalog.pg_total_relation_size(c.oid))
  FROM pg_catalog.pg_class AS c LEFT JOIN pg_catalog.pg_inherits AS p ON p.inhrelid = c.oid
 WHERE c.relnamespace = pg_catalog.to_regnamespace('arc_halo') AND c.relkind IN ('r', 'm')
 GROUP BY 1 HAVING sum(pg_catalog.pg_total_relation_size(c.oid)) > 0 ORDER BY 2 DESC, 1 LIMIT :shown
"""
_INVALID_INDEXES = """
SELECT i.indexrelid::pg_catalog.regclass::text FROM pg_catalog.pg_index AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
 WHERE c.relnamespace = pg_catalog.to_regnamespace('arc_halo') AND NOT i.indisvalid ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``advice`` says what to do if it is wrong."""

    subject: str
    state: str
    advice: str | None = None


@dataclass
class Examination:
    """All findings, bytes by table with indexes and partitions, and the blob store, once there is a schema for it."""

    findings: list[Finding] = field(default_factory=list)
    tables: dict[str, int] = field(default_factory=dict)
    blob_store: BlobStoreState | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"findings": self.findings, "tables": self.tables, "blob_store": self.blob_store}


def examine(target: Target, blob_url: str | None = None) -> Examination:
    """Look at everything; a server that does not answer raises.

    Parameters
    ----------
    blob_url
        The blob store; by default the configured one.

    Raises
    ------
    DatabaseUnavailable
        There is no server, or it does not answer.
    """
    settings = load_settings()
    engine = application_engine(target.url, settings)
    found = Examination()
    try:
        revisions = current(engine)
        with engine.connect() as connection:
            found.findings += [
                _server(connection, target),
                _pgvector(connection),
                _encryption(connection, target),
                _schema(engine, revisions),
                _indexes(connection),
                _content(connection, revisions),
                _connections(connection, target, settings),
            ]
            if revisions == heads():
                found.blob_store = examine_blobs(connection, blob_url or _configured(settings))
                found.findings.append(Finding("blob store", found.blob_store.described, found.blob_store.advice))
            tables = connection.execute(text(_TABLES), {"shown": _SHOWN_TABLES})
            found.tables = {name: int(nbytes) for name, nbytes in tables}
    finally:
        engine.dispose()
    return found


def _configured(settings: Settings) -> str | None:
    return None if settings.blob_url is None else settings.blob_url.get_secret_value()


def _server(connection: Connection, target: Target) -> Finding:
    version, number, is_replica = connection.execute(
        text("SELECT current_setting('server_version'), current_setting('server_version_num')::int,"
             " pg_is_in_recovery()")
    ).one()  # fmt: skip
    state = f"PostgreSQL {version.partition(' ')[0]}, " + ("embedded" if target.is_embedded else "configured by URL")
    if number // 10_000 < OLDEST_SERVER:
        return Finding("server", state, f"move to PostgreSQL {OLDEST_SERVER} or newer")
    if is_replica:
        return Finding("server", f"{state}, a read-only replica", "use the URL of the primary to write")
    return Finding("server", state)


def _pgvector(connection: Connection) -> Finding:
    row = connection.execute(
        text("SELECT default_version, installed_version FROM pg_catalog.pg_available_extensions WHERE name = 'vector'")
    ).one_or_none()
    wanted = ".".join(map(str, OLDEST_PGVECTOR))
    if row is None:
        return Finding("pgvector", "not on this server", f"install pgvector {wanted} or newer on the server")
    available, installed = row
    if installed is None:
        return Finding("pgvector", f"{available} available, not installed", "run `arc-halo db upgrade`")
    if tuple(int(part) for part in installed.split(".")) < OLDEST_PGVECTOR:
        return Finding("pgvector", installed, f"install {wanted} or newer, then run ALTER EXTENSION vector UPDATE")
    return Finding("pgvector", installed)


def _encryption(connection: Connection, target: Target) -> Finding:
    row = connection.execute(
        text("SELECT ssl, version, cipher FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()")
    ).one_or_none()
    if row is not None and row.ssl:
        return Finding("encryption", f"{row.version}, {row.cipher}")
    if is_local(target.url):
        return Finding("encryption", "none, and none is needed on this machine")
    if is_pooled(target.url):
        return Finding("encryption", "up to the pooler, which does not tell")
    return Finding("encryption", "none", "add sslmode=verify-full to the URL: weights and password can be read")


def _schema(engine: Engine, revisions: tuple[str, ...]) -> Finding:
    state = f"revision {', '.join(revisions) or 'none'}, the code is at {', '.join(heads())}"
    try:
        ensure_at_head(engine)
    except SchemaNotAtHead as error:
        return Finding("schema", state, str(error))
    return Finding("schema", state)


def _indexes(connection: Connection) -> Finding:
    invalid = connection.scalars(text(_INVALID_INDEXES)).all()
    if not invalid:
        return Finding("indexes", "all valid")
    advice = "; ".join(f"REINDEX INDEX CONCURRENTLY {name}" for name in invalid)
    return Finding("indexes", f"{len(invalid)} left unfinished", advice)


def _content(connection: Connection, revisions: tuple[str, ...]) -> Finding:
    whole = size(connection.scalar(text("SELECT pg_database_size(current_database())")) or 0)
    if not revisions:
        return Finding("content", f"{whole}, no models yet")
    counts = connection.execute(
        text(
            "SELECT (SELECT count(*) FROM arc_halo.models), (SELECT count(DISTINCT name) FROM arc_halo.models),"
            " (SELECT count(*) FROM arc_halo.tensor_metadata),"
            " (SELECT count(*) FROM arc_halo.tensor_data)"
        )
    ).one()
    nouns = ("version", "model", "tensor", "chunk")
    versions, models, *others = (count(number, noun) for number, noun in zip(counts, nouns, strict=True))
    return Finding("content", ", ".join([whole, f"{versions} of {models}", *others]))


def _connections(connection: Connection, target: Target, settings: Settings) -> Finding:
    wanted = settings.pool_size + settings.max_overflow
    used, limit = connection.execute(
        text(
            "SELECT (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend'),"
            " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        )
    ).one()
    state = f"{used} of {limit} in use, a process of ours takes up to {wanted}"
    if wanted > limit and not is_pooled(target.url):
        advice = "lower ARC_HALO_POOL_SIZE and ARC_HALO_MAX_OVERFLOW, or raise max_connections"
        return Finding("connections", state, advice)
    return Finding("connections", state)

"""All that an ``env.py`` has to do, for a project that has no wishes of its own."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from alembic import context
from sqlalchemy import NullPool, create_engine, text

from arc_halo.autogenerate.downgrade import goes_down, refuse_data_loss, steps_of
from arc_halo.autogenerate.loss import refuse_marked
from arc_halo.autogenerate.schemas import declared_schemas, quoted
from arc_halo.autogenerate.scope import scope

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, MetaData

_MISSING = text("SELECT pg_catalog.to_regnamespace(pg_catalog.quote_ident(:schema)) IS NULL")


def run_migrations(metadata: MetaData, url: URL | str, **options: Any) -> None:
    """Run Alembic's command; to be called by ``env.py``, online and offline.

    The metadata's schema is created if it is missing, for the version table is in it. Each upgrade is a transaction, a
    downgrade as a whole is one. What loses rows is refused unless ``-x allow_data_loss=1`` says that they may go.

    Parameters
    ----------
    metadata
        The target metadata; it must have a schema.
    url
        The database; it is not asked offline.
    options
        Further arguments for ``context.configure``.

    Raises
    ------
    DataLossRefused
        A revision says of itself that it loses data, or a downgrade would drop what holds rows.
    ConfigurationError
        The metadata has no schema.
    """
    if context.is_offline_mode():
        _run_offline(metadata, options)
        return
    with create_engine(url, poolclass=NullPool).connect() as connection:
        _run_online(connection, metadata, options)


def _run_offline(metadata: MetaData, options: dict[str, Any]) -> None:
    exact: dict[str, Any] = {"literal_binds": True, "dialect_opts": {"paramstyle": "named"}}  # else each % is doubled
    context.configure(dialect_name="postgresql", **exact, **scope(metadata), **options)
    context.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(declared_schemas(metadata)[0])}")
    with context.begin_transaction():
        context.run_migrations()


def _run_online(connection: Connection, metadata: MetaData, options: dict[str, Any]) -> None:
    schemas = declared_schemas(metadata)
    if connection.scalar(_MISSING, {"schema": schemas[0]}):
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {quoted(schemas[0])}"))
    connection.commit()  # or Alembic finds a transaction open, leaves it to us and commits nothing
    arguments = scope(metadata, connection) | options
    context.configure(connection=connection, transaction_per_migration=True, **arguments)
    steps = steps_of(context.get_context())
    may_lose = context.get_x_argument(as_dictionary=True).get("allow_data_loss", "").lower() in {"1", "true", "yes"}
    if not may_lose:
        refuse_marked(steps)
    connection.commit()
    down = goes_down(steps)
    if down:
        context.configure(connection=connection, transaction_per_migration=False, **arguments)
    with (
        context.begin_transaction(),
        refuse_data_loss(connection, *schemas) if down and not may_lose else nullcontext(),
    ):
        context.run_migrations()

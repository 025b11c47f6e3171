"""Alembic environment: one schema of our own, in a database that other applications may share."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from logging.config import fileConfig
from typing import TYPE_CHECKING, Any

from alembic import context
from sqlalchemy import Connection, text

from arc_halo.autogenerate.downgrade import goes_down, refuse_data_loss, steps_of
from arc_halo.autogenerate.loss import refuse_marked
from arc_halo.autogenerate.schemas import declared_schemas
from arc_halo.autogenerate.scope import scope
from arc_halo.database.migrate import SCHEMA, SEARCH_PATH, environment_url, migration_engine, migration_lock
from arc_halo.schema import Base

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.operations import MigrationScript

config = context.config
if config.config_file_name is not None:
    fileConfig(config.config_file_name, disable_existing_loggers=False)
given_metadata = config.attributes.get("target_metadata")
target_metadata = Base.metadata if given_metadata is None else given_metadata
# Neither is ever dropped: the schema holds the version table, the extension is everybody's.
PREREQUISITES = {
    f"SELECT pg_catalog.to_regnamespace('{SCHEMA}') IS NULL": f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}",
    "SELECT pg_catalog.to_regtype('public.vector') IS NULL": "CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public",
}


@contextmanager
def connected(*, alone: bool) -> Iterator[Connection]:
    """The connection to migrate: the caller's, whose lock and transaction are the caller's too, or a new one."""
    given = config.attributes.get("connection")
    if isinstance(given, Connection):
        yield given
        return
    engine = given or migration_engine(environment_url(config))
    with migration_lock(engine) if alone else nullcontext(), engine.connect() as connection:
        yield connection


def only_looks() -> bool:
    """Whether the command is ``current``: before any other, Alembic makes the version table, which needs the schema."""
    configure(dialect_name="postgresql")  # the command's options can be seen only then
    return bool(context.get_context().opts.get("dont_mutate"))


def prepare(connection: Connection) -> None:
    """Create what revisions rely on; asked first, since IF NOT EXISTS wants the privilege even when it is there."""
    for missing, statement in PREREQUISITES.items():
        if connection.scalar(text(missing)):
            connection.execute(text(statement))


def number(_context: object, _revision: object, directives: list[MigrationScript]) -> None:
    """Number revisions: 0001, 0002, ... Two branches that take the same number are told so by Alembic when merged."""
    revisions = len(list(context.script.walk_revisions()))
    for script in directives:
        if not script.rev_id.isdecimal():  # else it was given with --rev-id
            script.rev_id = f"{revisions + 1:04}"


def configure(connection: Connection | None = None, **options: Any) -> None:
    """Configure Alembic for our schema."""
    context.configure(
        connection=connection, process_revision_directives=number, **scope(target_metadata, connection), **options
    )


def may_lose_data() -> bool:
    """Whether the caller said so."""
    said = config.attributes.get("allow_data_loss", context.get_x_argument(as_dictionary=True).get("allow_data_loss"))
    return str(said).lower() in {"1", "true", "yes"}


def run_online() -> None:
    """Migrate a database: each upgrade in a transaction of its own, a downgrade as a whole in one."""
    changes = not only_looks()
    with connected(alone=changes) as connection, ExitStack() as stack:
        callers_transaction = connection.in_transaction()
        if changes:
            prepare(connection)
        if not callers_transaction:
            connection.commit()  # or Alembic finds a transaction open, leaves it to us and commits nothing
        configure(connection, transaction_per_migration=True)
        steps = steps_of(context.get_context())
        down = goes_down(steps)
        if not may_lose_data():
            refuse_marked(steps)
        if not callers_transaction:
            connection.commit()
        if down:
            configure(connection, transaction_per_migration=False)
        stack.enter_context(context.begin_transaction())
        if down and not may_lose_data():
            stack.enter_context(refuse_data_loss(connection, *declared_schemas(target_metadata)))
        context.run_migrations()


def run_offline() -> None:
    """Write SQL for somebody else to run; needs no database, and cannot see whether a downgrade loses rows."""
    configure(dialect_name="postgresql", literal_binds=True, dialect_opts={"paramstyle": "named"})  # else % is doubled
    for statement in [*PREREQUISITES.values(), f"SET search_path TO {SEARCH_PATH}"]:
        context.execute(statement)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()

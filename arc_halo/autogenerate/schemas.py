"""Which schemas are ours: the metadata's own, which holds the version table, and those declared beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import MetaData, text
from sqlalchemy.dialects import postgresql

from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Connection

Schemas = tuple[str, ...]

_QUOTE = postgresql.dialect(paramstyle="named").identifier_preparer.quote_schema  # type: ignore[no-untyped-call]
_INFO = "arc_halo.autogenerate.schemas"
_STANDING = "SELECT nspname FROM pg_catalog.pg_namespace WHERE nspname = ANY (:schemas)"
_USED = f"""{_STANDING} AND EXISTS (SELECT FROM pg_catalog.pg_depend
                                     WHERE refclassid = 'pg_catalog.pg_namespace'::regclass AND refobjid = oid)"""


class Relation(NamedTuple):
    """A table or view by its schema and its name, unquoted."""

    schema: str
    name: str

    def __str__(self) -> str:
        return ".".join(self)


def declare_schemas(metadata: MetaData, *schemas: str) -> None:
    """Declare further schemas of a metadata, whose tables, views and objects are compared with those of its own.

    They are created in a revision if they are not there, and never dropped. Tables of the metadata in other schemas
    are there to be referred to, and left alone.

    Examples
    --------
    >>> metadata = MetaData(schema="app")
    >>> declare_schemas(metadata, "audit", "jobs")
    >>> declared_schemas(metadata)
    ('app', 'audit', 'jobs')
    """
    metadata.info.setdefault(_INFO, []).extend(schemas)


def declared_schemas(metadata: MetaData) -> Schemas:
    """The metadata's own schema, then those that were declared.

    Raises
    ------
    ConfigurationError
        If the metadata has no schema.
    """
    if metadata.schema is None:
        raise ConfigurationError("The metadata has no schema of its own: declare it as MetaData(schema='...').")
    return tuple(dict.fromkeys((str(metadata.schema), *metadata.info.get(_INFO, ()))))


def sole_metadata(target: object) -> MetaData:
    """Alembic's target, which may not be a list here: order and dependencies are found for all of it at once.

    Raises
    ------
    ConfigurationError
        If it is anything but one metadata.
    """
    if not isinstance(target, MetaData):
        raise ConfigurationError(
            f"target_metadata must be one MetaData, not a {type(target).__name__}: keep the tables of all schemas in"
            " one, and name its further schemas by declare_schemas(metadata, ...)."
        )
    return target


def quoted(schema: str) -> str:
    """The name as it stands in a statement; a connection's own quoting would double each ``%``."""
    return str(_QUOTE(schema))


def standing_schemas(connection: Connection, schemas: Schemas) -> set[str]:
    """Those that are there."""
    return set(connection.scalars(text(_STANDING), {"schemas": list(schemas)}))


def used_schemas(connection: Connection, schemas: Schemas) -> set[str]:
    """Those that hold something."""
    return set(connection.scalars(text(_USED), {"schemas": list(schemas)}))

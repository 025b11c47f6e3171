"""Partitions are data: declared beside their parent, made with it, never compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import FromClause, Table, text

from arc_halo.autogenerate.schemas import Relation
from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sqlalchemy import Connection

    from arc_halo.autogenerate.schemas import Schemas

_INFO = "arc_halo.autogenerate.partitions"


def declare_partitions(table: FromClause, *statements: str) -> None:
    """Declare the fixed partitions of a partitioned table by their CREATE TABLE ... PARTITION OF.

    They are created right after the table, by ``create_all`` and in the revision that creates the table. What happens
    to partitions later is a matter of running the database, and no autogenerate asks for it.

    Raises
    ------
    ConfigurationError
        If ``table`` is no table, or not a partitioned one.
    """
    if not isinstance(table, Table) or not table.dialect_options["postgresql"]["partition_by"]:
        raise ConfigurationError(
            f"{table} is not partitioned: give it postgresql_partition_by, or drop its partitions."
        )
    table.info.setdefault(_INFO, []).extend(statements)


def declared_partitions(info: Mapping[Any, Any]) -> tuple[str, ...]:
    """The statements kept in a table's ``info``."""
    return tuple(info.get(_INFO, ()))


def pop_partitions(info: dict[Any, Any]) -> tuple[str, ...]:
    """Take the statements out of an operation's ``info``, which Alembic would write into the revision."""
    return tuple(info.pop(_INFO, ()))


def partition_names(connection: Connection, schemas: Schemas) -> set[Relation]:
    """All partitions in the schemas."""
    query = """SELECT n.nspname, c.relname
                 FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
                WHERE c.relispartition AND n.nspname = ANY (:schemas)"""
    return {Relation(*row) for row in connection.execute(text(query), {"schemas": list(schemas)})}

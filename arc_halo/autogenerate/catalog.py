"""The catalog text of schemas: PostgreSQL's own description of their objects and of their tables' parts."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import text

from arc_halo.autogenerate.objects import Key, Statements
from arc_halo.autogenerate.savepoints import rolled_back
from arc_halo.autogenerate.schemas import Relation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, Row

    from arc_halo.autogenerate.schemas import Schemas


def _sql(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


_OBJECTS = _sql("objects.sql")
_PARTS = _sql("parts.sql")
_DEPENDENCIES = _sql("dependencies.sql")
_TABLES = _sql("tables.sql")
_PREPARED = """
SELECT ARRAY(SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = ANY (:schemas))
  FROM pg_catalog.set_config('search_path', '', true)"""


class Address(NamedTuple):
    """Where pg_depend finds it: oid of the catalog, oid of the row, number of the column or 0."""

    catalog: int
    oid: int
    column: int


@dataclass(frozen=True)
class Found:
    """An object or part as the catalogs describe it; ``removal`` is the statement that drops it.

    ``relation`` is the table that it belongs to, ``member`` the bare name of what it is in it; ``subject`` is of a
    privilege, and what it is about, as PostgreSQL writes it.
    """

    address: Address
    is_part: bool
    relation: Relation | None
    member: str | None
    definition: Statements
    removal: str
    comments: Mapping[str, str]
    subject: str | None = None

    @property
    def statements(self) -> Statements:
        """What creates it as it is, comments included."""
        return (*self.definition, *(comment_on(target, said) for target, said in self.comments.items()))


class TableText(NamedTuple):
    """A table as the catalogs describe it: columns with their defaults, no constraints and no indexes."""

    name: str
    definition: str
    comments: Mapping[str, str]
    partitions: Statements


def comment_on(target: str, said: str | None) -> str:
    """Say something about an object, or with None nothing any more."""
    literal = "NULL" if said is None else "'" + said.replace("'", "''") + "'"
    return f"COMMENT ON {target} IS {literal}"


def qualified(
    connection: Connection, query: str, schemas: Schemas, parameters: Mapping[str, object] | None = None
) -> Sequence[Row[tuple[Any, ...]]]:
    """Rows of a catalog query whose texts qualify every name, whatever path the connection has."""
    with rolled_back(connection):
        oids = connection.scalar(text(_PREPARED), {"schemas": list(schemas)})
        return connection.execute(text(query), {"schemas": oids, **(parameters or {})}).all()


def read(connection: Connection, schemas: Schemas) -> dict[Key, Found]:
    """All objects and parts of the schemas."""
    rows = qualified(connection, f"{_OBJECTS} UNION ALL {_PARTS}", schemas)
    return {
        Key(row.kind, row.name): Found(
            Address(row.catalog, row.oid, row.column_number),
            row.is_part,
            row.relation and Relation(*row.relation),
            row.member,
            tuple(statement for statement in row.definition if statement),
            row.removal,
            row.comments,
        )
        for row in rows
    }


def object_births(connection: Connection, schemas: Schemas) -> dict[Key, int | None]:
    """The objects' identities only, without their texts, which PostgreSQL then skips, and when each was made.

    It is the number of the subtransaction, less that of the next one; None for what has no row of its own, as the
    storage of a column. Dependencies tell it: they are not written again when the object is altered.
    """
    query = f"""
        SELECT o.kind, o.name, d.born
          FROM ({_OBJECTS}) AS o
          LEFT JOIN (SELECT classid, objid, min(-age(xmin)) AS born FROM pg_catalog.pg_depend GROUP BY 1, 2) AS d
            ON (d.classid, d.objid) = (o.catalog, o.oid)"""  # noqa: S608  (our own text)
    return {Key(row.kind, row.name): row.born for row in qualified(connection, query, schemas)}


def read_tables(connection: Connection, schemas: Schemas) -> dict[Relation, TableText]:
    """What would create the schemas' tables as they stand."""
    return {
        Relation(*row.relation): TableText(row.name, row.definition, row.comments, tuple(row.partitions))
        for row in qualified(connection, _TABLES, schemas)
    }


def dependencies(connection: Connection) -> list[tuple[Address, Address]]:
    """Pairs of user and used, all over the database."""
    return [(Address(*row[:3]), Address(*row[3:])) for row in connection.execute(text(_DEPENDENCIES))]


def columns(connection: Connection, schemas: Schemas) -> dict[tuple[Relation, str], Address]:
    """Addresses of the columns of the schemas' tables by (table, column); partitions are left out."""
    query = """
        SELECT n.nspname, t.relname, a.attname, t.tableoid, t.oid, a.attnum
          FROM pg_catalog.pg_class AS t JOIN pg_catalog.pg_attribute AS a ON a.attrelid = t.oid
          JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
         WHERE n.nspname = ANY (:schemas)
           AND t.relkind IN ('r', 'p') AND NOT t.relispartition AND a.attnum > 0 AND NOT a.attisdropped"""
    rows = connection.execute(text(query), {"schemas": list(schemas)})
    return {(Relation(row[0], row[1]), row[2]): Address(*row[3:]) for row in rows}

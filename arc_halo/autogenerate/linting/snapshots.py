"""The relations, columns and constraints of the scratch at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    import psycopg

# An index belongs to its table, a partition to the table that it is of.
_RELATIONS: Final = """
SELECT c.oid::bigint, pg_catalog.format('%I.%I', n.nspname, c.relname), c.relname, c.relkind::text,
       c.relfilenode::bigint,
       coalesce(pg_catalog.pg_partition_root(coalesce(i.indrelid, c.oid)), i.indrelid, c.oid)::oid::bigint
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_index AS i ON i.indexrelid = c.oid
 WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
   AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'i', 'I')"""
_COLUMNS: Final = """
SELECT a.attrelid::bigint, a.attnum, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull
  FROM pg_catalog.pg_attribute AS a
  JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'p', 'f')
   AND a.attnum > 0 AND NOT a.attisdropped"""
_CONSTRAINTS: Final = """
SELECT c.oid::bigint, c.conname, c.conrelid::bigint, c.contype::text, c.convalidated
  FROM pg_catalog.pg_constraint AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.connamespace
 WHERE c.conrelid <> 0 AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"""


class Relation(NamedTuple):
    """A table, view, sequence or index; ``table`` is the oid of the table it belongs to, its own if it is one."""

    oid: int
    name: str
    bare_name: str
    kind: str
    file: int
    table: int


class Column(NamedTuple):
    """A column; a rename does not change its number."""

    table: int
    number: int
    name: str
    type: str
    is_not_null: bool


class Constraint(NamedTuple):
    """A constraint; ``kind`` is that of ``pg_constraint.contype``."""

    oid: int
    name: str
    table: int
    kind: str
    is_valid: bool


@dataclass(frozen=True)
class Snapshot:
    """What there is outside of PostgreSQL's own schemas."""

    relations: Mapping[int, Relation]
    columns: Mapping[tuple[int, int], Column]
    constraints: Mapping[int, Constraint]

    def named(self, bare_name: str, kinds: str) -> Iterator[Relation]:
        """Relations of that name in whatever schema."""
        return (each for each in self.relations.values() if each.bare_name == bare_name and each.kind in kinds)


def snapshot(connection: psycopg.Connection[Any]) -> Snapshot:
    """Look; what the transaction has not committed yet is seen, too."""
    relations = (Relation(*row) for row in connection.execute(_RELATIONS))
    columns = (Column(*row) for row in connection.execute(_COLUMNS))
    constraints = (Constraint(*row) for row in connection.execute(_CONSTRAINTS))
    return Snapshot(
        {each.oid: each for each in relations},
        {(each.table, each.number): each for each in columns},
        {each.oid: each for each in constraints},
    )

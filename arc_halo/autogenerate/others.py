"""What stands in our schemas and is not ours: it is neither compared nor dropped."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from arc_halo.autogenerate.catalog import qualified
from arc_halo.autogenerate.schemas import Relation, declared_schemas, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection, MetaData, Table

    from arc_halo.autogenerate.catalog import Found
    from arc_halo.autogenerate.objects import Key

_INFO: Final = "arc_halo.autogenerate.others"
_MARKED: Final = """
SELECT c.oid::regclass || COALESCE('.' || quote_ident(a.attname), '')
  FROM pg_class AS c
  JOIN pg_description AS d ON d.classoid = c.tableoid AND d.objoid = c.oid
  LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = d.objsubid AND d.objsubid > 0
 WHERE c.relnamespace = ANY (:schemas) AND strpos(d.description, :marker) > 0
 UNION ALL
SELECT p.oid::regprocedure::text
  FROM pg_proc AS p
  JOIN pg_description AS d ON d.classoid = p.tableoid AND d.objoid = p.oid
 WHERE p.pronamespace = ANY (:schemas) AND strpos(d.description, :marker) > 0"""


def leave_alone(metadata: MetaData, *names: str, marker: str | None = None) -> None:
    """Leave alone what others keep in the schemas of a metadata: it is neither compared nor dropped.

    What is declared is ours whatever it is called. What stands in a table that is left alone is left alone, too. A view
    or trigger of others on a table of ours that is in the way of a change is dropped and made again as it was.

    Parameters
    ----------
    names
        As PostgreSQL writes them, with ``*`` for any characters: ``app.legacy_*`` for tables, views, indexes and
        sequences, ``app.items.dba_*`` for columns, ``app.dba_*(*`` for functions, ``dba_* ON app.items`` for triggers,
        policies and constraints.
    marker
        Whatever has this text in its comment.

    Examples
    --------
    >>> from sqlalchemy import MetaData
    >>> metadata = MetaData(schema="app")
    >>> leave_alone(metadata, "app.legacy_*", "audit_* ON app.*", marker="kept by the DBA")
    """
    patterns, markers = metadata.info.setdefault(_INFO, ([], []))
    patterns.extend(names)
    if marker is not None:
        markers.append(marker)


@dataclass(frozen=True)
class Others:
    """What is left alone, by name or by what its comment has in it."""

    patterns: tuple[str, ...]
    markers: tuple[str, ...]
    marked: frozenset[str]
    declared: frozenset[str]

    def own(self, name: str, relation: Relation | None = None, comments: Iterable[str] = ()) -> bool:
        """Whether the thing of this name is theirs, or the table that it belongs to."""
        table = None if relation is None else name_of(relation)
        names = {each for each in (name, table) if each is not None} - self.declared
        return (
            not names.isdisjoint(self.marked)
            or any(fnmatchcase(each, pattern) for each in names for pattern in self.patterns)
            or any(marker in said for said in comments for marker in self.markers)
        )

    def own_object(self, key: Key, found: Found) -> bool:
        """Whether an object or part, or what a privilege is about, is theirs."""
        return self.own(found.subject or key.name, found.relation, found.comments.values())


def others(connection: Connection | None, metadata: MetaData) -> Others:
    """What `leave_alone` was told, and what is marked in a database."""
    patterns, markers = metadata.info.get(_INFO, ((), ()))
    schemas = declared_schemas(metadata)
    marked: set[str] = set()
    for marker in markers if connection is not None else ():
        assert connection is not None
        marked |= {str(row[0]) for row in qualified(connection, _MARKED, schemas, {"marker": marker})}
    declared = frozenset(name for table in metadata.tables.values() for name in _names(table))
    return Others(tuple(patterns), tuple(markers), frozenset(marked), declared)


def name_of(relation: Relation) -> str:
    """A table, view or index as PostgreSQL writes it."""
    return ".".join(quoted(each) for each in relation)


def member_name(kind: str, table: Relation, member: str) -> str:
    """A column, index or constraint of a table as PostgreSQL writes it; ``kind`` is Alembic's."""
    if kind == "index":
        return name_of(Relation(table.schema, member))
    return f"{name_of(table)}.{quoted(member)}" if kind == "column" else f"{quoted(member)} ON {name_of(table)}"


def _names(table: Table) -> Iterator[str]:
    """All that a table declares."""
    relation = Relation(str(table.schema), table.name)
    yield name_of(relation)
    for kind, members in (("column", table.columns), ("index", table.indexes), ("constraint", table.constraints)):
        yield from (member_name(kind, relation, str(member.name)) for member in members)

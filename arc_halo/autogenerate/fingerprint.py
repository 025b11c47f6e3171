"""Fingerprint of schemas: sorted catalog text, equal for two databases that hold the same things."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final, NamedTuple

from arc_halo.autogenerate.catalog import qualified, read
from arc_halo.autogenerate.schemas import Relation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from arc_halo.autogenerate.schemas import Schemas

_REST = resources.files(__package__).joinpath("fingerprint.sql").read_text("utf-8")
VERSION_TABLE: Final = "alembic_version"
"""As Alembic calls it."""


class Thing(NamedTuple):
    """One thing of a schema as the catalogs describe it.

    Attributes
    ----------
    relation
        The table that it belongs to, or itself; None for functions and types.
    text
        Its definition and its comments; may have several lines.
    """

    kind: str
    name: str
    relation: Relation | None
    text: str

    @property
    def line(self) -> str:
        """All of it, as fingerprints have it."""
        return f"{self.kind} {self.name}: {self.text}"


def remainder(connection: Connection, schemas: Schemas) -> list[Thing]:
    """What is neither object nor part: tables, columns, sequences, types."""
    return [
        Thing(row.kind, row.name, row.relation and Relation(*row.relation), row.text)
        for row in qualified(connection, _REST, schemas)
    ]


def things(connection: Connection, *schemas: str, version_table: str = VERSION_TABLE) -> list[Thing]:
    """Every table, column, constraint, index, sequence, type, object and comment of one schema or several.

    Partitions and the first schema's version table are left out: the one are data, the other tells which way was taken.
    """
    found = remainder(connection, schemas)
    for key, each in read(connection, schemas).items():
        found.append(Thing(key.kind, key.name, each.relation, "; ".join(each.statements)))
    return [each for each in found if each.relation != (schemas[0], version_table)]


def fingerprint(connection: Connection, *schemas: str, version_table: str = VERSION_TABLE) -> list[str]:
    """One text for each of the `things` of the schemas, sorted; a text may have several lines."""
    return sorted(each.line for each in things(connection, *schemas, version_table=version_table))


def difference(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """What only one of two fingerprints has: lines with ``- `` of the first, with ``+ `` of the second."""
    only = [(text, "- ") for text in set(first) - set(second)] + [(text, "+ ") for text in set(second) - set(first)]
    return [sign + text for text, sign in sorted(only)]

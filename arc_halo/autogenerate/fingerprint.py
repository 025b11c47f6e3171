"""Fingerprint of a schema: sorted catalog text, equal for two databases that hold the same things."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from arc_halo.autogenerate.catalog import qualified, read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

_REST = resources.files(__package__).joinpath("fingerprint.sql").read_text("utf-8")


class Line(NamedTuple):
    """One thing of a schema, and the bare name of the table it belongs to, or of itself."""

    relation: str
    text: str


def remainder(connection: Connection, schema: str) -> list[Line]:
    """What is neither object nor part: tables, columns, sequences, types, disabled triggers."""
    rows = qualified(connection, _REST, schema)
    return [Line(str(row.relation), f"{row.kind} {row.name}: {row.text}") for row in rows]


def fingerprint(connection: Connection, schema: str, *, version_table: str = "alembic_version") -> list[str]:
    """Describe every table, column, constraint, index, sequence, type, object and comment of a schema.

    Partitions and the version table are left out: the one are data, the other tells which way was taken.

    Returns
    -------
    list[str]
        One text per thing, sorted; a text may have several lines.
    """
    lines = [line.text for line in remainder(connection, schema) if line.relation != version_table]
    for key, found in read(connection, schema).items():
        if found.relation != version_table:
            lines.append(f"{key.kind} {key.name}: " + "; ".join(found.statements))
    return sorted(lines)


def difference(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """What only one of two fingerprints has: lines with ``- `` of the first, with ``+ `` of the second."""
    only = [(text, "- ") for text in set(first) - set(second)] + [(text, "+ ") for text in set(second) - set(first)]
    return [sign + text for text, sign in sorted(only)]

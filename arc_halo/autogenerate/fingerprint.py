"""Fingerprint of a schema: sorted catalog text, equal for two databases that hold the same things."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from arc_halo.autogenerate.catalog import qualified, read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

_REST = resources.files(__package__).joinpath("fingerprint.sql").read_text("utf-8")


def fingerprint(connection: Connection, schema: str, *, version_table: str = "alembic_version") -> list[str]:
    """Describe every table, column, constraint, index, sequence, type, object and comment of a schema.

    Partitions and the version table are left out: the one are data, the other tells which way was taken.

    Returns
    -------
    list[str]
        One text per thing, sorted; a text may have several lines.
    """
    lines = [
        f"{row.kind} {row.name}: {row.text}"
        for row in qualified(connection, _REST, schema)
        if row.relation != version_table
    ]
    for key, found in read(connection, schema).items():
        if found.relation != version_table:
            lines.append(f"{key.kind} {key.name}: " + "; ".join(found.statements))
    return sorted(lines)


def difference(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """What only one of two fingerprints has: lines with ``- `` of the first, with ``+ `` of the second."""
    only = [(text, "- ") for text in set(first) - set(second)] + [(text, "+ ") for text in set(second) - set(first)]
    return [sign + text for text, sign in sorted(only)]

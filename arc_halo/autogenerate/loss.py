"""What a revision loses: told in the revision when it is written, and refused when it is run.

A line ``# DATA LOSS: ...`` in the file of a revision is the mark. Whoever has saved what goes, or does not want it, may
delete the line; else the upgrade wants to be told that rows may go.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import text

from arc_halo.autogenerate.schemas import Relation
from arc_halo.errors import DataLossRefused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from alembic.runtime.migration import MigrationStep
    from sqlalchemy import Connection

    from arc_halo.autogenerate.schemas import Schemas

MARK: Final = "DATA LOSS: "
_MARKED: Final = re.compile(rf"^[ \t]*# {MARK}(.+)$", re.MULTILINE)
_TYPES: Final = """
SELECT n.nspname, t.relname, a.attname,
       a.atttypid, a.atttypmod, pg_catalog.format_type(a.atttypid, a.atttypmod), y.typname
  FROM pg_catalog.pg_class AS t
  JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = t.oid
  JOIN pg_catalog.pg_type AS y ON y.oid = a.atttypid
 WHERE n.nspname = ANY (:schemas)
   AND t.relkind IN ('r', 'p') AND NOT t.relispartition AND a.attnum > 0 AND NOT a.attisdropped
   AND a.attgenerated = ''"""
_WIDER: Final = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_cast
                WHERE castsource = :before AND casttarget = :after AND castcontext = 'i')"""
_TEXTS: Final = {"text", "varchar"}
# Another length is another thing: nothing of them is cut off or filled up.
_FIXED: Final = {"vector", "halfvec", "sparsevec", "bit"}
_ONE_OF: Final = re.compile(r"= ANY \(+ARRAY\[")
_LITERAL: Final = re.compile(r"'((?:[^']|'')*)'")


class ColumnType(NamedTuple):
    """The type of a column: its oid, its modifier (a length, precision or dimension; -1 for none) and its names."""

    oid: int
    modifier: int
    text: str
    name: str


def column_types(connection: Connection, schemas: Schemas) -> dict[tuple[Relation, str], ColumnType]:
    """Types of the columns of the schemas' tables by (table, column); generated ones can be computed again."""
    rows = connection.execute(text(_TYPES), {"schemas": list(schemas)})
    return {(Relation(row[0], row[1]), row[2]): ColumnType(*row[3:]) for row in rows}


def narrowed(
    connection: Connection,
    before: Mapping[tuple[Relation, str], ColumnType],
    after: Mapping[tuple[Relation, str], ColumnType],
) -> dict[tuple[Relation, str], str]:
    """Columns whose new type cannot hold every value of the old one, and what happens to them, as a clause."""
    return {
        place: f"values of {place[0]}.{place[1]} that {after[place].text} cannot hold as {before[place].text} does"
        for place in before.keys() & after.keys()
        if not _is_wider(connection, before[place], after[place])
    }


def values_gone(before: str, after: str) -> list[str]:
    """The literals that a CHECK for one of several values no longer allows; none for other CHECKs."""
    if not (_ONE_OF.search(before) and _ONE_OF.search(after)):
        return []
    return sorted(set(_LITERAL.findall(before)) - set(_LITERAL.findall(after)))


def refuse_marked(steps: Iterable[MigrationStep]) -> None:
    """Refuse to run revisions that say of themselves that they lose data.

    Raises
    ------
    DataLossRefused
        One does; nothing was done yet.
    """
    lost = [f"{number}: {what}" for number, path in _upgrades(steps) for what in marks(path)]
    if lost:
        raise DataLossRefused(
            f"The upgrade would lose data: {'; '.join(lost)}. Nothing was changed. Save it first, or say that it may"
            " go: `-x allow_data_loss=1`."
        )


def marks(path: Path) -> list[str]:
    """What a revision file says that it loses."""
    return _MARKED.findall(path.read_text(encoding="utf-8"))


def _upgrades(steps: Iterable[MigrationStep]) -> Iterator[tuple[str, Path]]:
    for step in steps:
        script = getattr(step, "revision", None)
        if script is not None and step.is_upgrade:
            yield script.revision, Path(script.path)


def _is_wider(connection: Connection, before: ColumnType, after: ColumnType) -> bool:
    if before.oid != after.oid:
        is_text = after.name in _TEXTS  # everything can be written as text
        if not is_text and not connection.scalar(text(_WIDER), {"before": before.oid, "after": after.oid}):
            return False
        fits = is_text and before.name in _TEXTS and -1 < before.modifier <= after.modifier
        return after.modifier == -1 or fits
    if after.modifier in (before.modifier, -1):
        return True
    if before.modifier == -1 or after.name in _FIXED:
        return False
    if after.name == "numeric":
        return all(ours <= theirs for ours, theirs in zip(_digits(before), _digits(after), strict=True))
    return before.modifier < after.modifier


def _digits(numeric: ColumnType) -> tuple[int, int]:
    """Digits before and after the point: a modifier has precision and scale in 16 bits each, and 4 above that."""
    precision, scale = divmod(numeric.modifier - 4, 1 << 16)
    return precision - scale, scale

"""Differences that no operation covers: they are told, never passed over in silence.

PostgreSQL has more kinds of change than autogenerate writes: a column's collation, a table's partition key and whether
it is logged, the type of a sequence, the labels of an enum.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from arc_halo.autogenerate.fingerprint import difference
from arc_halo.autogenerate.tables import flat, relation_of
from arc_halo.errors import SchemaNotAtHead

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from alembic.operations import MigrateOperation

    from arc_halo.autogenerate.compare import Comparison
    from arc_halo.autogenerate.schemas import Relation

_log = logging.getLogger("alembic.autogenerate.arc_halo")


def uncovered_lines(
    comparison: Comparison, table_ops: Iterable[MigrateOperation], version_table: Relation
) -> list[str]:
    """What differs on tables that Alembic does not change.

    On those that it does, a line cannot be told from what the operation explains; the next autogenerate tells it.
    """
    touched = {version_table} | {relation for op in flat(table_ops) if (relation := relation_of(op)) is not None}
    standing, declared = (
        [
            each.line
            for each in things
            if comparison.names.relation(each.relation) not in touched
            and not comparison.others.own(each.name, each.relation)
        ]
        for things in comparison.remainder
    )
    return [*difference(standing, declared), *_uncovered_parts(comparison, touched)]


def _uncovered_parts(comparison: Comparison, touched: set[Relation]) -> Iterator[str]:
    current, wanted, changes = comparison.current, comparison.wanted, comparison.changes
    for key in sorted((current.keys() ^ wanted.keys()) - changes.gone - changes.new_parts):
        found = current.get(key) or wanted[key]
        if found.is_part and found.relation not in touched and not comparison.others.own_object(key, found):
            yield f"{'-' if key in current else '+'} {key.kind} {key.name}: {'; '.join(found.definition)}"


def report(lines: list[str], *, alone: bool) -> None:
    """Say what is left to be written by hand.

    Raises
    ------
    SchemaNotAtHead
        If there is nothing else: the revision would be empty, and the check would pass.
    """
    if not lines:
        return
    said = (
        "The database (-) and the declarations (+) differ in what autogenerate does not write. Write the operation into"
        " a revision by hand (`alembic revision`, without --autogenerate):\n"
    ) + "\n".join(lines)
    if alone:
        raise SchemaNotAtHead(said)
    _log.warning(said)

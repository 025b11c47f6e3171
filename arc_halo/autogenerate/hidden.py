"""Uses that PostgreSQL does not know of: it looks into the bodies of PL/pgSQL functions only when they run."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from arc_halo.autogenerate.operations import SqlOperation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from alembic.operations import MigrateOperation

    from arc_halo.autogenerate.compare import Comparison
    from arc_halo.autogenerate.objects import Key

_log = logging.getLogger("alembic.autogenerate.arc_halo")
_ROUTINES = ("function", "procedure")
_NAMED = ("table", "view", "matview", "aggregate", *_ROUTINES)


def warn_of_hidden_uses(comparison: Comparison, operations: Iterable[MigrateOperation]) -> None:
    """Say which functions that stay name in their bodies what these operations drop for good."""
    for function, name in hidden_uses(comparison, operations):
        _log.warning(
            "%s %s names %s in its body, which this revision drops; PostgreSQL would say so only when it runs. Change"
            " the body, or write it in SQL as BEGIN ATOMIC ... END: then PostgreSQL knows what it uses.",
            *function,
            name,
        )


def hidden_uses(comparison: Comparison, operations: Iterable[MigrateOperation]) -> Iterator[tuple[Key, str]]:
    """Functions that stay, each with what its body names of what goes."""
    gone = {
        op.key.name.partition("(")[0]
        for op in operations
        if isinstance(op, SqlOperation) and op.action == "drop" and op.key.kind in _NAMED
    }
    staying = {key.name.partition("(")[0] for key in comparison.wanted}
    for key, found in sorted(comparison.wanted.items()):
        if key.kind in _ROUTINES:
            named = (name for name in sorted(gone - staying) if _is_named(name, found.definition[0]))
            yield from ((key, name) for name in named)


def _is_named(name: str, body: str) -> bool:
    return re.search(rf"(?<![\w.\"]){re.escape(name)}(?![\w\"])", body) is not None

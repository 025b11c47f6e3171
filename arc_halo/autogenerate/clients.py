"""Who else uses the database while autogenerate looks at it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Connection

_log = logging.getLogger("alembic.autogenerate.arc_halo")

# Whoever has an advisory lock migrates or waits for it: by habit on a connection of its own, beside the one that asks
# here. Of other users' sessions a plain role sees no backend_type.
_OTHERS: Final = """
SELECT COALESCE(NULLIF(a.application_name, ''), 'pid ' || a.pid) AS name
  FROM pg_catalog.pg_stat_activity AS a
 WHERE a.datname = pg_catalog.current_database() AND a.pid <> pg_catalog.pg_backend_pid()
   AND COALESCE(a.backend_type, 'client backend') = 'client backend'
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_locks AS l WHERE l.pid = a.pid AND l.locktype = 'advisory')
 ORDER BY 1"""
_SHOWN: Final = 5


def warn_of_clients(connection: Connection) -> None:
    """Say so if others are connected: it takes nothing from them, and still is no place to build a schema in."""
    names = connection.scalars(text(_OTHERS)).all()
    if not names:
        return
    shown = list(dict.fromkeys(names))
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    _log.warning(
        "The database has %d other client%s (%s%s). Autogenerate locks no table of the declared schemas, but it builds"
        " everything that is declared in a transaction that it takes back, which costs the server time and leaves dead"
        " rows in the system catalogs: a database of your own at the same revision does as well.",
        len(names),
        "" if len(names) == 1 else "s",
        ", ".join(shown[:_SHOWN]),
        more,
    )

"""How large tables are now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection

# The planner's figure is -1 before the first ANALYZE, the statistics' is lost by a crash: the larger one is nearer.
# Partitions count for the table that they belong to.
_SIZES: Final = """
WITH known AS (
    SELECT c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname) AS name
      FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
     WHERE c.relkind IN ('r', 'p', 'm') AND pg_catalog.format('%I.%I', n.nspname, c.relname) = ANY (:names)
)
SELECT known.name,
       coalesce(sum(greatest(c.reltuples, pg_catalog.pg_stat_get_live_tuples(c.oid), 0)), 0)::bigint,
       coalesce(sum(pg_catalog.pg_total_relation_size(c.oid)), 0)::bigint
  FROM known
  JOIN pg_catalog.pg_class AS c
    ON c.relkind IN ('r', 'm')
   AND c.oid IN (SELECT known.oid UNION ALL SELECT relid FROM pg_catalog.pg_partition_tree(known.oid))
 GROUP BY 1"""


class Size(NamedTuple):
    """Rows, as far as the server's statistics know, and bytes with indexes and what is stored out of line."""

    rows: int
    nbytes: int


def table_sizes(connection: Connection, names: Collection[str]) -> dict[str, Size]:
    """Sizes of those of the tables that there are, by qualified name.

    Nothing is read of the tables; PostgreSQL holds a reader's lock on each for as long as it looks at its files.
    """
    rows = connection.execute(text(_SIZES), {"names": sorted(names)})
    return {row[0]: Size(row[1], row[2]) for row in rows}

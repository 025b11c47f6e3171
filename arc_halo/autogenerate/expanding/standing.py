"""Expansions as a database has them: their sync triggers carry what was declared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from arc_halo.autogenerate.expanding.declaring import MARK, Expansion

if TYPE_CHECKING:
    from sqlalchemy import Connection

# The arguments are bytes in the database's encoding, each with a zero behind it.
_EXPANSIONS: Final = r"""
SELECT n.nspname, c.relname, a.words
  FROM pg_catalog.pg_trigger AS t
  JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 CROSS JOIN LATERAL (
       SELECT array_agg(pg_catalog.convert_from(pg_catalog.decode(m.hex[1], 'hex'), pg_catalog.getdatabaseencoding())
                        ORDER BY m.place) AS words
         FROM pg_catalog.regexp_matches(pg_catalog.encode(t.tgargs, 'hex'),
                                        '((?:[1-9a-f][0-9a-f]|0[1-9a-f])*)00', 'g') WITH ORDINALITY AS m (hex, place)
       ) AS a
 WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgnargs = 5 AND a.words[1] = :mark
   AND (CAST(:schema AS text) IS NULL OR n.nspname = :schema)
 ORDER BY 1, 2, t.tgname"""


def standing_expansions(connection: Connection, schema: str | None = None) -> list[Expansion]:
    """The expansions whose sync triggers are in the database, of one schema or of all that there are."""
    rows = connection.execute(text(_EXPANSIONS), {"mark": MARK, "schema": schema})
    return [Expansion(row[0], row[1], *row[2][1:]) for row in rows]

"""Room for new blocks within a tenant's quota: what was used longest ago goes, tails before heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arc_halo.inference.kv.storing import Encoded

# The row of the quota is the lock: writers of a tenant that has one go one by one, so that together they keep to it.
_QUOTA: Final = """
SELECT max_nbytes FROM arc_halo.cache_quotas WHERE tenant_id = %(tenant)s AND kind = 'kv' FOR NO KEY UPDATE
"""
_USED: Final = "SELECT coalesce(sum(stored_nbytes), 0)::bigint FROM arc_halo.kv_cache WHERE tenant_id = %(tenant)s"
# A block was used when the last of itself and all behind it was, and stays if one of them does; so what stands behind a
# block always goes before it. That is handed up from tails to heads, position by position, of all chains at once: the
# first row of each position brings the tails of the next; OFFSET has each be found by its key. Blocks that somebody has
# locked are passed over, with all that they stand behind. Nothing goes unless it is enough.
_EVICT: Final = """
WITH RECURSIVE tails AS MATERIALIZED (
    SELECT b.position, array_agg(b.namespace_id) AS namespace_ids, array_agg(b.block_hash) AS block_hashes
      FROM arc_halo.kv_cache AS b
     WHERE b.tenant_id = %(tenant)s
       AND NOT EXISTS (SELECT FROM arc_halo.kv_cache AS c
                        WHERE c.tenant_id = b.tenant_id AND c.namespace_id = b.namespace_id
                          AND c.parent_hash = b.block_hash)
     GROUP BY b.position),
blocks (position, namespace_id, block_hash, parent_hash, stored_nbytes, used_at, stays, is_first) AS (
    SELECT max(t.position) + 1, NULL::integer, NULL::bytea, NULL::bytea, 0::bigint, NULL::timestamptz, true, true
      FROM tails AS t
    UNION ALL
    SELECT n.*, row_number() OVER () = 1
      FROM (SELECT DISTINCT ON (b.namespace_id, b.block_hash)
                   l.position - 1, b.namespace_id, b.block_hash, b.parent_hash, b.stored_nbytes,
                   max(greatest(g.used_at, s.last_hit_at, b.created_at)) OVER same,
                   bool_or(g.stays OR b.is_pinned OR b.block_hash = ANY(%(kept)b::bytea[])) OVER same
              FROM blocks AS l
             CROSS JOIN LATERAL (
                   SELECT l.namespace_id, l.parent_hash, l.used_at, l.stays
                    WHERE l.parent_hash IS NOT NULL
                   UNION ALL
                   SELECT e.*, NULL, false
                     FROM tails AS t
                    CROSS JOIN unnest(t.namespace_ids, t.block_hashes) AS e
                    WHERE l.is_first AND t.position = l.position - 1) AS g (namespace_id, block_hash, used_at, stays)
             CROSS JOIN LATERAL (
                   SELECT o.*
                     FROM arc_halo.kv_cache AS o
                    WHERE o.tenant_id = %(tenant)s AND o.namespace_id = g.namespace_id
                      AND o.block_hash = g.block_hash
                   OFFSET 0) AS b
              LEFT JOIN LATERAL (
                   SELECT o.last_hit_at
                     FROM arc_halo.kv_cache_statistics AS o
                    WHERE o.tenant_id = %(tenant)s AND o.namespace_id = g.namespace_id
                      AND o.block_hash = g.block_hash
                   OFFSET 0) AS s ON true
            WINDOW same AS (PARTITION BY b.namespace_id, b.block_hash)) AS n),
ranked AS MATERIALIZED (
    SELECT b.*, sum(b.stored_nbytes) OVER () AS most,
           sum(b.stored_nbytes) OVER (ORDER BY b.used_at, b.position DESC, b.block_hash
                                      ROWS UNBOUNDED PRECEDING) - b.stored_nbytes AS before
      FROM blocks AS b
     WHERE NOT b.stays),
chosen AS MATERIALIZED (
    SELECT * FROM ranked AS r WHERE r.before < %(needed)s AND (%(partly)s OR r.most >= %(needed)s)),
locked AS (
    SELECT b.namespace_id, b.block_hash
      FROM arc_halo.kv_cache AS b
      JOIN chosen AS c ON c.namespace_id = b.namespace_id AND c.block_hash = b.block_hash
     WHERE b.tenant_id = %(tenant)s AND NOT b.is_pinned
       FOR UPDATE OF b SKIP LOCKED),
in_use AS (
    SELECT c.namespace_id, c.block_hash, c.parent_hash
      FROM chosen AS c
     WHERE (c.namespace_id, c.block_hash) NOT IN (SELECT l.namespace_id, l.block_hash FROM locked AS l)
    UNION
    SELECT c.namespace_id, c.block_hash, c.parent_hash
      FROM in_use AS u
      JOIN chosen AS c ON c.namespace_id = u.namespace_id AND c.block_hash = u.parent_hash),
deleted AS (
    DELETE FROM arc_halo.kv_cache AS b
     USING locked AS l
     WHERE b.tenant_id = %(tenant)s AND b.namespace_id = l.namespace_id AND b.block_hash = l.block_hash
       AND NOT b.is_pinned
       AND (l.namespace_id, l.block_hash) NOT IN (SELECT u.namespace_id, u.block_hash FROM in_use AS u)
    RETURNING b.namespace_id, b.block_hash)
SELECT c.block_hash, c.stored_nbytes, d.block_hash IS NOT NULL
  FROM chosen AS c
  LEFT JOIN deleted AS d ON d.namespace_id = c.namespace_id AND d.block_hash = c.block_hash
"""


class Room(NamedTuple):
    """Whether there is room, and how many blocks went for it."""

    is_enough: bool
    evicted_count: int = 0


def make_room(
    connection: psycopg.Connection[Any],
    tenant_id: int,
    nbytes: int,
    kept: Sequence[Encoded] = (),
    *,
    partly: bool = False,
) -> Room:
    """Evict until ``nbytes`` more fit into the tenant's quota; without one there is always room.

    Parameters
    ----------
    kept
        Blocks that must stay: those that the new ones stand behind.
    partly
        Evict what may go, even if it is not enough; otherwise nothing goes then.
    """
    quota = connection.execute(_QUOTA, {"tenant": tenant_id}).fetchone()
    if quota is None:
        return Room(is_enough=True)
    (used,) = connection.execute(_USED, {"tenant": tenant_id}).fetchone() or (0,)
    needed = used + nbytes - quota[0]
    if needed <= 0:
        return Room(is_enough=True)
    if nbytes > quota[0]:
        return Room(is_enough=False)
    hashes = [block.block_hash for block in kept]
    room = Room(is_enough=False)
    with connection.transaction() as attempt:  # a savepoint
        room = _evict(connection, tenant_id, needed, hashes, partly=partly)
        if not (room.is_enough or partly):
            raise psycopg.Rollback(attempt)
    return room if room.is_enough or partly else Room(is_enough=False)


def _evict(
    connection: psycopg.Connection[Any], tenant_id: int, needed: int, kept: list[bytes], *, partly: bool
) -> Room:
    """Once, unless somebody uses blocks that were to go: then again, without those."""
    evicted = 0
    while needed > 0:
        values = {"tenant": tenant_id, "kept": kept, "needed": needed, "partly": partly}
        chosen = connection.execute(_EVICT, values).fetchall()
        if not chosen:
            return Room(is_enough=False, evicted_count=evicted)
        gone = [size for _, size, is_gone in chosen if is_gone]
        evicted += len(gone)
        needed -= sum(gone)
        kept = kept + [block_hash for block_hash, _, is_gone in chosen if not is_gone]
    return Room(is_enough=True, evicted_count=evicted)

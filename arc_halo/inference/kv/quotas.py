"""Room for new blocks within a tenant's quota: what was used longest ago goes, tails before heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from arc_halo.inference.kv.storing import Encoded

# The row of the quota is the lock: writers of a tenant that has one go one by one, so that together they keep to it.
_QUOTA: Final = """
SELECT max_nbytes FROM arc_halo.cache_quotas WHERE tenant_id = %(tenant)s AND kind = 'kv' FOR NO KEY UPDATE
"""
_USED: Final = "SELECT coalesce(sum(stored_nbytes), 0)::bigint FROM arc_halo.kv_cache WHERE tenant_id = %(tenant)s"
# Blocks that nothing stands behind, the least recently used first, as many as make the room that is needed. Deleting
# them makes others such blocks: the statement is run again until there is room, or nothing left to take.
_EVICT: Final = """
WITH tails AS (
    SELECT b.namespace_id, b.block_hash, b.stored_nbytes,
           sum(b.stored_nbytes) OVER (ORDER BY coalesce(s.last_hit_at, b.created_at), b.position DESC, b.block_hash
                                      ROWS UNBOUNDED PRECEDING) - b.stored_nbytes AS before
      FROM arc_halo.kv_cache AS b
      LEFT JOIN arc_halo.kv_cache_statistics AS s
        ON s.tenant_id = b.tenant_id AND s.namespace_id = b.namespace_id AND s.block_hash = b.block_hash
     WHERE b.tenant_id = %(tenant)s AND NOT b.is_pinned AND NOT (b.block_hash = ANY(%(kept)b::bytea[]))
       AND NOT EXISTS (SELECT FROM arc_halo.kv_cache AS c
                        WHERE c.tenant_id = b.tenant_id AND c.namespace_id = b.namespace_id
                          AND c.parent_hash = b.block_hash)),
taken AS (
    SELECT b.namespace_id, b.block_hash
      FROM arc_halo.kv_cache AS b
      JOIN tails AS t ON t.namespace_id = b.namespace_id AND t.block_hash = b.block_hash
     WHERE b.tenant_id = %(tenant)s AND t.before < %(needed)s
       FOR UPDATE OF b SKIP LOCKED)
DELETE FROM arc_halo.kv_cache AS b
 USING taken AS t
 WHERE b.tenant_id = %(tenant)s AND b.namespace_id = t.namespace_id AND b.block_hash = t.block_hash
RETURNING b.stored_nbytes
"""


class Room(NamedTuple):
    """Whether there is room, and how many blocks went for it."""

    is_enough: bool
    evicted_count: int = 0


def make_room(connection: psycopg.Connection[Any], tenant_id: int, nbytes: int, kept: Sequence[Encoded] = ()) -> Room:
    """Evict until ``nbytes`` more fit into the tenant's quota; without one there is always room.

    Parameters
    ----------
    kept
        Blocks that must stay: those that the new ones stand behind.
    """
    quota = connection.execute(_QUOTA, {"tenant": tenant_id}).fetchone()
    if quota is None:
        return Room(is_enough=True)
    (used,) = connection.execute(_USED, {"tenant": tenant_id}).fetchone() or (0,)
    needed = used + nbytes - quota[0]
    if nbytes > quota[0]:
        return Room(is_enough=False)
    evicted = 0
    hashes = [block.block_hash for block in kept]
    while needed > 0:
        sizes = connection.execute(_EVICT, {"tenant": tenant_id, "kept": hashes, "needed": needed}).fetchall()
        if not sizes:
            return Room(is_enough=False, evicted_count=evicted)
        evicted += len(sizes)
        needed -= sum(size for (size,) in sizes)
    return Room(is_enough=True, evicted_count=evicted)

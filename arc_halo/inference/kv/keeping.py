"""What a tenant keeps: pins, quotas, and clearing out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, text
from sqlalchemy.dialects.postgresql import insert

from arc_halo.errors import CacheError
from arc_halo.inference.kv.lookup import find_prefix
from arc_halo.schema import CacheNamespace, CacheQuota
from arc_halo.schema.caches import CACHE_KINDS
from arc_halo.schema.columns import TENANT_ID

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.inference.namespaces import CacheKind, Namespace

_PIN: Final = text("""
WITH chosen AS (
    SELECT b.block_hash
      FROM arc_halo.kv_cache AS b
     WHERE b.tenant_id = :tenant AND b.namespace_id = :namespace AND b.block_hash = ANY(CAST(:hashes AS bytea[]))
     ORDER BY b.position
       FOR NO KEY UPDATE)
UPDATE arc_halo.kv_cache AS b
   SET is_pinned = :pinned
  FROM chosen AS c
 WHERE b.tenant_id = :tenant AND b.namespace_id = :namespace AND b.block_hash = c.block_hash
RETURNING b.block_hash
""")
# What stands behind a block that is to be unpinned, and is pinned itself, keeps it.
_PINNED_AFTER: Final = text("""
WITH RECURSIVE after AS (
    SELECT b.block_hash, b.is_pinned
      FROM arc_halo.kv_cache AS b
     WHERE b.tenant_id = :tenant AND b.namespace_id = :namespace AND b.parent_hash = :last
       AND NOT b.block_hash = ANY(CAST(:hashes AS bytea[]))
    UNION ALL
    SELECT b.block_hash, b.is_pinned
      FROM after AS a
      JOIN arc_halo.kv_cache AS b
        ON b.tenant_id = :tenant AND b.namespace_id = :namespace AND b.parent_hash = a.block_hash)
SELECT EXISTS (SELECT FROM after WHERE is_pinned)
""")


def pin_prefix(
    session: Session, namespace: Namespace, token_ids: Sequence[int] | np.ndarray, *, pinned: bool = True
) -> int:
    """Keep the stored prefix of a row of tokens, whatever its time and the quota say.

    Returns how many of the tokens are pinned now, or unpinned.

    Blocks are pinned from the first to the one in which the tokens end. Unpinning stops at blocks that a pinned one
    stands behind. Of a retired model version even what is pinned goes.
    """
    prefix = find_prefix(session, namespace, token_ids)
    hashes = [block.block_hash for block in prefix.blocks]
    key = {"tenant": namespace.tenant_id, "namespace": prefix.namespace_id}
    changed: list[bytes] = []
    if not pinned:
        # From the tail: the first that must stay keeps all before it.
        while hashes:
            if session.scalar(_PINNED_AFTER, key | {"last": hashes[-1], "hashes": hashes}):
                break
            changed += session.scalars(_PIN, key | {"hashes": [hashes.pop()], "pinned": False}).all()
    elif hashes:
        changed += session.scalars(_PIN, key | {"hashes": hashes, "pinned": True}).all()
    done = {bytes(each) for each in changed}
    return sum(block.used_token_count for block in prefix.blocks if block.block_hash in done)


def set_quota(session: Session, kind: CacheKind, max_nbytes: int | None, *, tenant_id: int = TENANT_ID) -> None:
    """Bound the bytes a tenant keeps in one cache; None takes the bound away.

    What is stored already is evicted by the next sweep, or by the next entry that needs room.

    Raises
    ------
    CacheError
        There is no such cache, or the number is negative.
    """
    if kind not in CACHE_KINDS:
        raise CacheError(f"there is no cache {kind!r}; {', '.join(CACHE_KINDS)} are")
    if max_nbytes is None:
        session.execute(delete(CacheQuota).where(CacheQuota.tenant_id == tenant_id, CacheQuota.kind == kind))
        return
    if max_nbytes < 0:
        raise CacheError(f"a quota of {max_nbytes} bytes makes no sense: give 0 or more, or None")
    values = {"tenant_id": tenant_id, "kind": kind, "max_nbytes": max_nbytes}
    upsert = insert(CacheQuota).values(values)
    session.execute(upsert.on_conflict_do_update(index_elements=["tenant_id", "kind"], set_={"max_nbytes": max_nbytes}))


def clear_caches(
    session: Session,
    *,
    kind: CacheKind | None = None,
    weights_digest: bytes | None = None,
    tenant_id: int = TENANT_ID,
) -> int:
    """Delete namespaces with all they hold, pinned or not; returns how many they were.

    Parameters
    ----------
    kind
        Of one cache; by default of all.
    weights_digest
        Of what was computed with these weights; by default of all.
    """
    statement = delete(CacheNamespace).where(CacheNamespace.tenant_id == tenant_id)
    if kind is not None:
        statement = statement.where(CacheNamespace.kind == kind)
    if weights_digest is not None:
        statement = statement.where(CacheNamespace.weights_digest == weights_digest)
    return len(session.execute(statement.returning(CacheNamespace.id)).all())

"""The quota of activations: what goes when there is no room, and what is not stored at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from arc_halo.inference.activations.keys import input_digest

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Mapping

    import numpy as np
    from sqlalchemy.orm import Session

_QUOTA: Final = "SELECT max_nbytes FROM arc_halo.cache_quotas WHERE tenant_id = :tenant_id AND kind = 'activation'"
_USED: Final = text("""
SELECT coalesce(sum(t.nbytes), 0)::bigint
  FROM arc_halo.tensor_metadata AS t
 WHERE t.tenant_id = :tenant_id
   AND t.id IN (SELECT a.tensor_id FROM arc_halo.activation_cache AS a WHERE a.tenant_id = :tenant_id)
""")
# A tensor goes with all entries that have it: its bytes are free only then. It was used when the last of them was.
_EVICT: Final = text("""
WITH kept AS (
    SELECT a.tensor_id, bool_or(a.is_pinned) AS is_pinned, max(greatest(a.last_hit_at, a.created_at)) AS used_at,
           bool_and(a.expires_at <= statement_timestamp()) IS TRUE AS is_expired
      FROM arc_halo.activation_cache AS a
     WHERE a.tenant_id = :tenant_id
     GROUP BY a.tensor_id
), ranked AS (
    SELECT k.tensor_id,
           sum(t.nbytes) OVER (ORDER BY k.is_expired DESC, k.used_at, k.tensor_id) - t.nbytes AS freed_before
      FROM kept AS k
      JOIN arc_halo.tensor_metadata AS t ON t.tenant_id = :tenant_id AND t.id = k.tensor_id
     WHERE NOT k.is_pinned AND k.tensor_id <> ALL(CAST(:stored AS uuid[]))
)
DELETE FROM arc_halo.activation_cache AS a
 USING ranked AS r
 WHERE a.tenant_id = :tenant_id AND a.tensor_id = r.tensor_id AND r.freed_before < :excess AND NOT a.is_pinned
RETURNING a.hook_point
""")


def lock_quota(session: Session, tenant_id: int) -> int | None:
    """How many bytes may be kept, None without a limit; others who store wait until the transaction ends.

    The rows of two transactions that each saw room for themselves alone would be too many together.
    """
    quota: int | None = session.scalar(text(f"{_QUOTA} FOR NO KEY UPDATE"), {"tenant_id": tenant_id})
    return quota


def is_too_large(session: Session, tenant_id: int, activations: Mapping[str, np.ndarray]) -> bool:
    """Whether the distinct arrays alone are more than the quota; so nothing is uploaded in vain."""
    quota: int | None = session.scalar(text(_QUOTA), {"tenant_id": tenant_id})
    if quota is None or sum(array.nbytes for array in activations.values()) <= quota:
        return False
    distinct = {input_digest({"": array}): array.nbytes for array in activations.values()}
    return sum(distinct.values()) > quota


def make_room(session: Session, tenant_id: int, quota: int, stored: Collection[uuid.UUID]) -> bool:
    """Evict the least recently used entries until what is kept fits; False if what may go is not enough.

    Parameters
    ----------
    stored
        Tensors of the entries just written, for which room is made.
    """
    excess = _used(session, tenant_id) - quota
    if excess <= 0:
        return True
    session.execute(_EVICT, {"tenant_id": tenant_id, "stored": list(stored), "excess": excess})
    return _used(session, tenant_id) <= quota


def keep_to_quota(session: Session, tenant_id: int) -> int:
    """Evict what is beyond a tenant's quota for activations; returns how many entries went."""
    quota = lock_quota(session, tenant_id)
    if quota is None or (excess := _used(session, tenant_id) - quota) <= 0:
        return 0
    return len(session.execute(_EVICT, {"tenant_id": tenant_id, "stored": [], "excess": excess}).all())


def _used(session: Session, tenant_id: int) -> int:
    used: int = session.execute(_USED, {"tenant_id": tenant_id}).scalar_one()
    return used

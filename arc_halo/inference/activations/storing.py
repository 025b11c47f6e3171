"""Activations into the database: all that a call computed, or, where there is no room, nothing of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from arc_halo.errors import ConstraintViolation, TransactionConflict
from arc_halo.inference.activations.budget import is_too_large, lock_quota, make_room
from arc_halo.inference.activations.keys import (
    check_digest,
    check_hook_points,
    check_milliseconds,
    check_namespace,
)
from arc_halo.inference.expiry import ttl_seconds
from arc_halo.inference.namespaces import ensure_namespace, find_namespace
from arc_halo.store import ArraySource, put_tensors

if TYPE_CHECKING:
    import datetime as dt
    import uuid
    from collections.abc import Mapping, Sequence

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.inference.namespaces import Namespace

_ATTEMPTS: Final = 5

# In the order of the key, so that two writers never wait for each other. A later result replaces an earlier one: that
# may have expired, or be of a computation that does not repeat itself to the bit.
_UPSERT: Final = text("""
INSERT INTO arc_halo.activation_cache AS a (
       tenant_id, namespace_id, hook_point, input_digest, tensor_id, recompute_ms, is_pinned, expires_at)
SELECT :tenant_id, :namespace_id, e.hook_point, :input_digest, e.tensor_id, CAST(:recompute_ms AS float8), :pinned,
       statement_timestamp() + make_interval(secs => CAST(:ttl AS float8))
  FROM unnest(CAST(:hook_points AS text[]), CAST(:tensor_ids AS uuid[])) AS e (hook_point, tensor_id)
 ORDER BY e.hook_point
    ON CONFLICT (tenant_id, namespace_id, hook_point, input_digest) DO UPDATE
   SET tensor_id = excluded.tensor_id,
       recompute_ms = coalesce(excluded.recompute_ms, a.recompute_ms),
       read_ms = CASE WHEN a.tensor_id = excluded.tensor_id THEN a.read_ms END,
       is_pinned = a.is_pinned OR excluded.is_pinned,
       expires_at = excluded.expires_at,
       created_at = excluded.created_at
""")


def put_activations(
    session: Session,
    namespace: Namespace,
    input_digest: bytes,
    activations: Mapping[str, np.ndarray],
    *,
    ttl: dt.timedelta | float | None = None,
    recompute_ms: float | None = None,
    pinned: bool = False,
) -> bool:
    """Keep the outputs of hook points for one input; True if they are kept.

    They are not where the model version was retired, or where the quota has no room for all of them, even once all
    that is not pinned is gone. What is evicted goes in the same transaction; ``prune`` collects its tensors.

    Parameters
    ----------
    activations
        Arrays of any shape by hook point.
    ttl
        Seconds, or a timedelta, after which they are misses, by the database's clock; None for as long as there is
        room.
    recompute_ms
        What one computation of all of them took, in milliseconds.
    pinned
        Neither expire nor be evicted.

    Raises
    ------
    CacheError
        The namespace is not one of activations, or a name, digest or ttl is none.
    TensorError
        An array has a type that cannot be stored.
    TransactionConflict
        Content was pruned as fast as it was stored, or two transactions waited for each other: run the unit again.
    """
    check_namespace(namespace)
    check_digest(input_digest)
    check_milliseconds(recompute_ms)
    hook_points = sorted(check_hook_points(activations))
    sources = [ArraySource(name, activations[name]) for name in hook_points]
    values = {"input_digest": input_digest, "recompute_ms": recompute_ms, "pinned": pinned, "ttl": ttl_seconds(ttl)}
    if is_too_large(session, namespace.tenant_id, activations):
        return False
    for _attempt in range(_ATTEMPTS):
        namespace_id = ensure_namespace(session, namespace)
        if find_namespace(session, namespace) is None:
            return False
        tensor_ids = put_tensors(session, sources, compression="fast")
        entries = {"namespace_id": namespace_id, "hook_points": hook_points, "tensor_ids": tensor_ids}
        try:
            return _write(session, namespace.tenant_id, tensor_ids, values | entries)
        except ConstraintViolation as error:
            if not error.is_dangling:  # the namespace was swept or a tensor pruned since it was found
                raise
    raise TransactionConflict("activations vanished while they were stored: run the unit again, READ COMMITTED")


def _write(session: Session, tenant_id: int, tensor_ids: Sequence[uuid.UUID], values: dict[str, object]) -> bool:
    with session.begin_nested() as attempt:
        quota = lock_quota(session, tenant_id)
        session.execute(_UPSERT, {"tenant_id": tenant_id} | values)
        if quota is None or make_room(session, tenant_id, quota, tensor_ids):
            return True
        attempt.rollback()
        return False

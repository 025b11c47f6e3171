"""Responses stored, within the tenant's quota."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from arc_halo.errors import CacheError
from arc_halo.inference.expiry import ttl_seconds
from arc_halo.inference.namespaces import ensure_namespace
from arc_halo.inference.responses.finding import check_kind
from arc_halo.inference.responses.keys import canonical_json, checked_text, question
from arc_halo.inference.responses.vectors import prompt_vector
from arc_halo.schema.columns import uuid7

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping, Sequence

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.inference.namespaces import Namespace

_FLOAT32_NBYTES: Final = 4

# The row of the quota is the lock: writers of a tenant that has one go one by one, so that together they keep to it.
_QUOTA: Final = text("""
SELECT max_nbytes FROM arc_halo.cache_quotas WHERE tenant_id = :tenant_id AND kind = 'response' FOR NO KEY UPDATE
""")
_OTHERS: Final = """
SELECT p.id, p.is_pinned, p.stored_nbytes, (p.expires_at > clock_timestamp()) IS NOT FALSE AS is_alive,
       coalesce(p.last_hit_at, p.created_at) AS used_at
  FROM arc_halo.response_cache AS p
 WHERE p.tenant_id = :tenant_id AND (p.namespace_id, p.settings_digest, p.prompt_digest)
       IS DISTINCT FROM (CAST(:namespace_id AS integer), CAST(:settings_digest AS bytea), CAST(:prompt_digest AS bytea))
"""
_PINNED: Final = text(f"SELECT coalesce(sum(stored_nbytes), 0)::bigint FROM ({_OTHERS}) AS o WHERE is_pinned")  # noqa: S608
# Kept from the most recently used on, as far as there is room; what has expired counts as used before all others.
_EVICT: Final = text(f"""
DELETE FROM arc_halo.response_cache AS p
 USING (SELECT id, sum(stored_nbytes) OVER (ORDER BY is_alive DESC, used_at DESC, id DESC) AS upto
          FROM ({_OTHERS}) AS o WHERE NOT is_pinned) AS ranked
 WHERE p.id = ranked.id AND ranked.upto > :room AND NOT p.is_pinned
RETURNING p.id
""")  # noqa: S608
_PUT: Final = text("""
INSERT INTO arc_halo.response_cache AS p (
       id, tenant_id, namespace_id, settings_digest, prompt_digest, settings, prompt, response, details, embedder,
       dimension, embedding, compute_seconds, stored_nbytes, is_pinned, expires_at)
VALUES (:id, :tenant_id, :namespace_id, :settings_digest, :prompt_digest, CAST(:settings AS jsonb), :prompt, :response,
        CAST(:details AS jsonb), :embedder, CAST(:dimension AS integer), CAST(:embedding AS public.vector),
        CAST(:compute_seconds AS float8), :stored_nbytes, :is_pinned,
        clock_timestamp() + make_interval(secs => CAST(:ttl AS float8)))
ON CONFLICT (tenant_id, namespace_id, settings_digest, prompt_digest) DO UPDATE
   SET settings = excluded.settings, prompt = excluded.prompt, response = excluded.response,
       details = excluded.details, embedder = excluded.embedder, dimension = excluded.dimension,
       embedding = excluded.embedding, compute_seconds = excluded.compute_seconds,
       stored_nbytes = excluded.stored_nbytes, is_pinned = p.is_pinned OR excluded.is_pinned,
       expires_at = excluded.expires_at, created_at = excluded.created_at
""")


def put_response(
    session: Session,
    namespace: Namespace,
    prompt: str,
    settings: Mapping[str, Any],
    response: str,
    *,
    details: Mapping[str, Any] | None = None,
    embedding: np.ndarray | Sequence[float] | None = None,
    embedder: str | None = None,
    compute_seconds: float | None = None,
    ttl: dt.timedelta | float | None = None,
    pinned: bool = False,
) -> bool:
    """Store a response, in the caller's transaction; it takes the place of one to the same question.

    Parameters
    ----------
    settings
        All that the response depends on beside the weights and the prompt: temperature, length, seed, ...
    details
        What came with the response, as JSON: number of tokens, stop reason, ...
    embedding, embedder
        Of the prompt, shape (dimension,), and what made it: both, or neither.
    compute_seconds
        What it took to compute.
    ttl
        How long it may be served, seconds or a timedelta, by the database's clock; None: for ever.
    pinned
        Neither expires nor makes room for others. Putting it again does not take that back.

    Returns
    -------
    bool
        Whether it was stored: not if the tenant's quota has no room for it beside what is pinned.

    Raises
    ------
    CacheError
        Something cannot be stored as it is: text with NUL characters, settings that are no JSON, a ttl that is no
        positive length of time, an embedding without an embedder; or there is no room for what shall be pinned.
    """
    check_kind(namespace)
    asked = question(prompt, settings)
    if (embedding is None) != (embedder is None):
        raise CacheError("an embedding is stored with the name of its embedder: give both, or neither")
    vector = None if embedding is None else prompt_vector(embedding, embedder)
    if compute_seconds is not None and not 0 <= compute_seconds < math.inf:
        raise CacheError(f"compute_seconds is {compute_seconds}; give what was measured, or None")
    seconds = ttl_seconds(ttl)
    row = {
        "settings_digest": asked.settings_digest,
        "prompt_digest": asked.prompt_digest,
        "settings": asked.settings,
        "prompt": prompt,
        "response": checked_text(response, "the response"),
        "details": canonical_json(details or {}, "details"),
        "embedder": embedder,
        "dimension": vector and vector.dimension,
        "embedding": vector and vector.spelled,
        "compute_seconds": compute_seconds,
        "is_pinned": pinned,
        "ttl": seconds,
    }
    row["stored_nbytes"] = _nbytes(row)
    return _write(session, namespace, row)


def _nbytes(row: dict[str, Any]) -> int:
    texts = sum(len(row[name].encode()) for name in ("prompt", "settings", "response", "details"))
    return texts + _FLOAT32_NBYTES * (row["dimension"] or 0)


def _write(session: Session, namespace: Namespace, row: dict[str, Any]) -> bool:
    place = {"tenant_id": namespace.tenant_id, "namespace_id": ensure_namespace(session, namespace)}
    if not _make_room(session, place | row):
        if row["is_pinned"]:
            raise CacheError(f"the quota has no room for {row['stored_nbytes']:,} more bytes that are pinned")
        return False
    session.execute(_PUT, place | row | {"id": uuid7()})
    return True


def _make_room(session: Session, row: dict[str, Any]) -> bool:
    quota = session.scalar(_QUOTA, row)
    if quota is None:
        return True
    room = quota - row["stored_nbytes"] - session.execute(_PINNED, row).scalar_one()
    if room < 0:
        return False
    session.execute(_EVICT, row | {"room": room})
    return True


def keep_to_quota(session: Session, tenant_id: int) -> int:
    """Evict what is beyond a tenant's quota for responses; returns how many went."""
    nothing = {"tenant_id": tenant_id, "namespace_id": None, "settings_digest": None, "prompt_digest": None}
    quota = session.scalar(_QUOTA, nothing)
    if quota is None:
        return 0
    room = max(0, quota - session.execute(_PINNED, nothing).scalar_one())
    return len(session.execute(_EVICT, nothing | {"room": room}).all())

"""Responses found again: by the same question, or by one that is near enough."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from arc_halo.errors import CacheError
from arc_halo.inference.namespaces import find_namespace
from arc_halo.inference.responses.keys import canonical_json, question, settings_digest
from arc_halo.inference.responses.vectors import prompt_vector
from arc_halo.schema.caches import CacheAudit
from arc_halo.schema.tensors import VECTOR_DIMENSIONS

if TYPE_CHECKING:
    import datetime as dt
    import uuid
    from collections.abc import Mapping, Sequence

    import numpy as np
    from sqlalchemy import Row
    from sqlalchemy.orm import Session

    from arc_halo.inference.namespaces import Namespace
    from arc_halo.inference.responses.vectors import PromptVector

EXACT_ROW_COUNT: Final = 1000
"""Up to so many responses of a namespace and settings all are compared; beyond, an HNSW index finds the nearest."""

# By the clock: in a transaction that stays open now() stands still.
_ALIVE: Final = "(p.is_pinned OR p.expires_at IS NULL OR p.expires_at > clock_timestamp())"
_WHERE: Final = """
 WHERE p.tenant_id = :tenant_id AND p.namespace_id = :namespace_id AND p.settings_digest = :settings_digest
"""
_FIND: Final = text(f"""
SELECT p.id, p.prompt, p.response, p.details, p.compute_seconds, p.created_at, 1.0::float8 AS similarity,
       p.prompt = CAST(:prompt AS text) AND p.settings = CAST(:settings AS jsonb) AS is_same
  FROM arc_halo.response_cache AS p
{_WHERE} AND p.prompt_digest = :prompt_digest AND {_ALIVE}
""")  # noqa: S608  constants of ours
_COUNT: Final = text(f"SELECT count(*) FROM (SELECT FROM arc_halo.response_cache AS p {_WHERE} LIMIT :limit) AS few")  # noqa: S608
_NEAREST: Final = f"""
SELECT p.id, p.prompt, p.response, p.details, p.compute_seconds, p.created_at,
       1 - (p.embedding OPERATOR(public.<=>) CAST(:embedding AS public.vector)) AS similarity,
       p.settings = CAST(:settings AS jsonb) AS is_same
  FROM arc_halo.response_cache AS p
{_WHERE} AND p.embedder = :embedder AND p.dimension = {{dimension}} AND {_ALIVE}
 ORDER BY {{distance}} LIMIT 1
"""  # noqa: S608
# For this statement alone: the rest of the transaction is the caller's.
_SCAN_ON: Final = text("""
SELECT current_setting('hnsw.iterative_scan', true), set_config('hnsw.iterative_scan', 'strict_order', true)
""")
_SCAN_BACK: Final = text("SELECT set_config('hnsw.iterative_scan', :before, true)")


@dataclass(frozen=True, slots=True)
class FoundResponse:
    """A stored response.

    Attributes
    ----------
    prompt
        What it was the response to; of a similar hit that is not what was asked.
    details
        What was stored with it.
    similarity
        Cosine of the embeddings, 1 for the same direction; 1 if the question is the same.
    compute_seconds
        What it took to compute, None if nobody measured.
    """

    response: str
    prompt: str = field(repr=False)
    details: dict[str, Any] = field(repr=False)
    similarity: float
    compute_seconds: float | None
    created_at: dt.datetime
    id: uuid.UUID = field(repr=False)


def find_response(
    session: Session, namespace: Namespace, prompt: str, settings: Mapping[str, Any]
) -> FoundResponse | None:
    """The response to the same prompt with the same settings.

    Found by digests; prompt and settings are compared then. Where they differ it is a miss, and a row of
    ``arc_halo.cache_audits`` in the caller's transaction. Nothing is found for a model version that was retired.

    Raises
    ------
    CacheError
        The namespace is not one of responses, or prompt or settings could not have been stored.
    """
    asked = question(prompt, settings)
    namespace_id = _reachable(session, namespace)
    if namespace_id is None:
        return None
    key = {
        "tenant_id": namespace.tenant_id,
        "namespace_id": namespace_id,
        "settings_digest": asked.settings_digest,
        "prompt_digest": asked.prompt_digest,
        "prompt": asked.prompt,
        "settings": asked.settings,
    }
    return _checked(session, namespace, namespace_id, session.execute(_FIND, key).first())


def find_similar_response(
    session: Session,
    namespace: Namespace,
    embedding: np.ndarray | Sequence[float],
    settings: Mapping[str, Any],
    *,
    embedder: str,
    min_similarity: float,
) -> FoundResponse | None:
    """The response to the stored prompt whose embedding is nearest, if that is near enough.

    Only what has the same namespace, the same settings and an embedding of the same embedder and dimension is
    compared. Up to `EXACT_ROW_COUNT` responses of a namespace and settings every one is; beyond, where there is one for
    the dimension, an HNSW index is asked, which may miss the nearest but gives none that is too far.

    Parameters
    ----------
    embedding
        Of the prompt; shape (dimension,).
    embedder
        What made it, with its version.
    min_similarity
        Least cosine, -1 to 1. Embeddings are float32: of equal ones it may be 1 - 1e-7.

    Raises
    ------
    CacheError
        The namespace is not one of responses, or the embedding, settings or similarity make no sense.
    """
    check_similarity(min_similarity)
    vector = prompt_vector(embedding, embedder)
    digest, canonical = settings_digest(settings), canonical_json(settings, "settings")
    namespace_id = _reachable(session, namespace)
    if namespace_id is None:
        return None
    key = {
        "tenant_id": namespace.tenant_id,
        "namespace_id": namespace_id,
        "settings_digest": digest,
        "settings": canonical,
        "embedder": vector.embedder,
        "embedding": vector.spelled,
    }
    nearest = _nearest(session, vector, key)
    if nearest is None or not nearest.similarity >= min_similarity:
        return None
    return _checked(session, namespace, namespace_id, nearest)


def check_similarity(min_similarity: float) -> None:
    """Raise `CacheError` unless it is a cosine."""
    if not -1 <= min_similarity <= 1:
        raise CacheError(f"min_similarity is {min_similarity}; a cosine is between -1 and 1")


def check_kind(namespace: Namespace) -> None:
    """Raise `CacheError` unless the namespace is one of responses."""
    if namespace.kind != "response":
        raise CacheError(f"responses are not cached in a namespace of kind {namespace.kind!r}: see Namespace.of_kind")


def _reachable(session: Session, namespace: Namespace) -> int | None:
    check_kind(namespace)
    return find_namespace(session, namespace)


def _nearest(session: Session, vector: PromptVector, key: dict[str, Any]) -> Row[Any] | None:
    # The dimension is a literal, so that the planner can prove a partial index's predicate whatever the plan.
    known = vector.dimension in VECTOR_DIMENSIONS
    if known and (session.scalar(_COUNT, key | {"limit": EXACT_ROW_COUNT + 1}) or 0) > EXACT_ROW_COUNT:
        ((before, _),) = session.execute(_SCAN_ON).all()
        found = session.execute(text(nearest_statement(vector.dimension, is_exact=False)), key).first()
        session.execute(_SCAN_BACK, {"before": before or "off"})
        return found
    return session.execute(text(nearest_statement(vector.dimension, is_exact=True)), key).first()


def nearest_statement(dimension: int, *, is_exact: bool) -> str:
    """SQL for the nearest; what an index is asked for is cast to its type, and else no index can answer."""
    type_ = "public.vector" if is_exact else f"public.vector({dimension})"
    column = "p.embedding" if is_exact else f"(p.embedding::{type_})"
    distance = f"{column} OPERATOR(public.<=>) CAST(:embedding AS {type_})"
    return _NEAREST.format(dimension=dimension, distance=distance)


def _checked(session: Session, namespace: Namespace, namespace_id: int, row: Row[Any] | None) -> FoundResponse | None:
    if row is None:
        return None
    if not row.is_same:
        audit = CacheAudit(tenant_id=namespace.tenant_id, namespace_id=namespace_id, kind="response")
        audit.reason, audit.details = "other_tokens", {"response_id": str(row.id)}
        session.add(audit)
        session.flush()
        return None
    return FoundResponse(
        response=row.response,
        prompt=row.prompt,
        details=row.details,
        similarity=row.similarity,
        compute_seconds=row.compute_seconds,
        created_at=row.created_at,
        id=row.id,
    )

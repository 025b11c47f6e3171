"""How the caches are used: their entries by hits, and what reading and computing were measured to take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, bindparam, func, select

from arc_halo.errors import CacheError
from arc_halo.inference.kv.costs import BreakEven
from arc_halo.inference.kv.hashing import TOKEN_NBYTES
from arc_halo.inference.kv.layout import KVLayout
from arc_halo.schema import (
    CachedActivation,
    CachedResponse,
    CacheNamespace,
    KVCacheBlock,
    KVCacheStatistics,
    Model,
    Tensor,
)
from arc_halo.schema.columns import TENANT_ID

if TYPE_CHECKING:
    import datetime as dt

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

    from arc_halo.inference.namespaces import CacheKind
    from arc_halo.schema import CacheStatus

FIRST_TOKENS: Final = 8
"""Of a block, enough to know it by."""


@dataclass(frozen=True, slots=True)
class UsedEntry:
    """What is cached, and how often it was given back.

    Parameters
    ----------
    models
        Those that have its weights now and are not archived, as ``name@version``.
    nbytes
        Of payloads, or of the texts and vector; of an activation as it is used.
    position, token_count, first_tokens
        Of a block: its number in its chain, its tokens, and the first of them.
    hook_point
        Of an activation.
    prompt
        Of a response.
    """

    kind: CacheKind
    namespace_id: int
    models: tuple[str, ...]
    hit_count: int
    last_hit_at: dt.datetime | None
    nbytes: int
    is_pinned: bool
    expires_at: dt.datetime | None
    position: int | None = None
    token_count: int | None = None
    first_tokens: tuple[int, ...] | None = None
    hook_point: str | None = None
    prompt: str | None = None


def most_used(session: Session, kind: CacheKind, *, limit: int = 20, tenant_id: int = TENANT_ID) -> list[UsedEntry]:
    """The entries of one cache that were given back most often, the newest hit first among equals.

    Reads the counts of all entries: they have no index, so that counting a hit is cheap.

    Raises
    ------
    CacheError
        There is no such cache.
    """
    if kind not in _STATEMENTS:
        raise CacheError(f"there is no cache {kind!r}; {', '.join(_STATEMENTS)} are")
    rows = session.execute(_STATEMENTS[kind].limit(limit), {"tenant": tenant_id}).mappings().all()
    models = _models(session, {row["weights_digest"] for row in rows}, tenant_id)
    return [_entry(kind, dict(row), models) for row in rows]


def break_even_of(status: CacheStatus) -> BreakEven | None:
    """What reading and computing take in a namespace, as all processes measured it.

    None where it has no keys and values, or in a layout that only another release can read.
    """
    try:
        token_nbytes = KVLayout.parse(status.layout, status.dtype).token_nbytes if status.kind == "kv" else None
    except CacheError:
        token_nbytes = None
    if token_nbytes is None:
        return None
    return BreakEven(token_nbytes, status.read_nbytes_per_second, status.computed_tokens_per_second)


def _entry(kind: CacheKind, row: dict[str, Any], models: dict[bytes, list[str]]) -> UsedEntry:
    names = tuple(models.get(row.pop("weights_digest"), ()))
    if kind == "kv":
        row["first_tokens"] = tuple(row["first_tokens"])
    return UsedEntry(kind=kind, models=names, **row)


def _models(session: Session, digests: set[bytes], tenant_id: int) -> dict[bytes, list[str]]:
    having = select(Model).where(
        Model.tenant_id == tenant_id, Model.weights_digest.in_(digests), Model.status != "archived"
    )
    found: dict[bytes, list[str]] = {}
    for model in session.scalars(having.order_by(Model.created_at, Model.id)):
        if model.weights_digest is not None:
            found.setdefault(model.weights_digest, []).append(f"{model.name}@{model.version}")
    return found


def _of(entity: type[KVCacheBlock | CachedActivation | CachedResponse], hits: Any, *columns: Any) -> Select[Any]:
    """Entries that were given back, with what all kinds have."""
    return (
        select(
            entity.namespace_id,
            CacheNamespace.weights_digest,
            hits.hit_count,
            hits.last_hit_at,
            entity.is_pinned,
            entity.expires_at,
            *columns,
        )
        .select_from(entity)
        .join(
            CacheNamespace,
            and_(CacheNamespace.tenant_id == entity.tenant_id, CacheNamespace.id == entity.namespace_id),
        )
        .where(entity.tenant_id == bindparam("tenant"), hits.hit_count > 0)
        .order_by(hits.hit_count.desc(), hits.last_hit_at.desc())
    )


_STATEMENTS: Final[dict[CacheKind, Select[Any]]] = {
    "kv": _of(
        KVCacheBlock,
        KVCacheStatistics,
        KVCacheBlock.stored_nbytes.label("nbytes"),
        KVCacheBlock.position,
        (func.octet_length(KVCacheBlock.token_ids) // TOKEN_NBYTES).label("token_count"),
        func.arc_halo.token_ids(func.substr(KVCacheBlock.token_ids, 1, FIRST_TOKENS * TOKEN_NBYTES)).label(
            "first_tokens"
        ),
    ).join(
        KVCacheStatistics,
        and_(
            KVCacheStatistics.tenant_id == KVCacheBlock.tenant_id,
            KVCacheStatistics.namespace_id == KVCacheBlock.namespace_id,
            KVCacheStatistics.block_hash == KVCacheBlock.block_hash,
        ),
    ),
    "activation": _of(
        CachedActivation, CachedActivation, Tensor.nbytes.label("nbytes"), CachedActivation.hook_point
    ).join(Tensor, and_(Tensor.tenant_id == CachedActivation.tenant_id, Tensor.id == CachedActivation.tensor_id)),
    "response": _of(
        CachedResponse, CachedResponse, CachedResponse.stored_nbytes.label("nbytes"), CachedResponse.prompt
    ),
}

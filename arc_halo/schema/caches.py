"""Caches: keys and values, activations and responses, each under all that must be equal for it to be right.

Cached content belongs to the digest of the weights it was computed with, never to a model's name.
"""

# ruff: noqa: TC002, TC003  (SQLAlchemy evaluates the annotations of mapped classes)

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import numpy as np
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from arc_halo.autogenerate import declare
from arc_halo.schema.base import Base
from arc_halo.schema.columns import (
    Digest,
    Int,
    Key,
    Now,
    SmallInt,
    TenantId,
    closed_set,
    digest_length,
    not_negative,
)
from arc_halo.schema.core import EMPTY_OBJECT
from arc_halo.schema.tensors import VECTOR_DIMENSIONS, Tensor
from arc_halo.schema.types import Vector

CACHE_KINDS = ("kv", "activation", "response")
MAX_BLOCK_TOKENS = 512
"""Tokens of a block: their four bytes each fit into an entry of an index."""

_NOT_PINNED = text("expires_at IS NOT NULL AND NOT is_pinned")
_ZERO = text("0")
_FALSE = text("false")


class CacheNamespace(Base):
    """Everything that must be equal for cached content to be the same, under one digest."""

    __tablename__ = "cache_namespaces"
    __table_args__ = (
        UniqueConstraint("tenant_id", "digest"),
        closed_set("kind", *CACHE_KINDS),
        closed_set("precision", "exact", "int8"),
        *digest_length("digest", "weights_digest", "adapter_digest", "tokenizer_digest", "config_digest"),
        CheckConstraint(f"block_token_count BETWEEN 1 AND {MAX_BLOCK_TOKENS}", name="block_token_count_range"),
        CheckConstraint("(block_token_count IS NOT NULL) = (kind = 'kv')", name="only_kv_in_blocks"),
        Index(None, "tenant_id", "weights_digest"),
    )

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    digest: Mapped[Digest] = mapped_column(comment="BLAKE3-256 over all columns below but the last")
    kind: Mapped[str]
    weights_digest: Mapped[Digest]
    is_registered: Mapped[bool] = mapped_column(
        comment="the weights are those of a model here: no hit unless one that is not archived has them"
    )
    adapter_digest: Mapped[Digest | None]
    tokenizer_digest: Mapped[Digest | None]
    config_digest: Mapped[Digest] = mapped_column(comment="of the architecture with its position encoding")
    dtype: Mapped[str]
    layout: Mapped[str] = mapped_column(comment="layers and axes of a payload")
    precision: Mapped[str] = mapped_column(comment="exact, or what the elements were rounded to")
    block_token_count: Mapped[Int | None] = mapped_column(comment="tokens of a whole block of keys and values")
    salt: Mapped[bytes] = mapped_column(comment="the tenant's: equal content of two tenants has other hashes")
    created_at: Mapped[Now]


_IN_NAMESPACE = (["tenant_id", "namespace_id"], ["arc_halo.cache_namespaces.tenant_id", "arc_halo.cache_namespaces.id"])
_OF_BLOCK = (
    ["tenant_id", "namespace_id", "block_hash"],
    ["arc_halo.kv_cache.tenant_id", "arc_halo.kv_cache.namespace_id", "arc_halo.kv_cache.block_hash"],
)


class KVCacheBlock(Base):
    """A block of consecutive tokens whose keys and values are stored, chained to the block before it."""

    __tablename__ = "kv_cache"
    __table_args__ = (
        ForeignKeyConstraint(*_IN_NAMESPACE, ondelete="CASCADE"),
        # A block is right only after its own parent, the row and not merely the hash: what goes takes along all that
        # was computed after it, so not even a collision of hashes lets another prefix stand before them.
        ForeignKeyConstraint(["tenant_id", "namespace_id", "parent_hash"], _OF_BLOCK[1], ondelete="CASCADE"),
        # Neighbours of a query in the order of their tokens: they share the most with it.
        Index("ix_kv_cache_after_parent", "tenant_id", "namespace_id", "parent_hash", "token_ids"),
        CheckConstraint("(parent_hash IS NULL) = (position = 0)", name="only_first_without_parent"),
        CheckConstraint("octet_length(token_ids) BETWEEN 4 AND 2048", name="token_ids_range"),
        CheckConstraint("mod(octet_length(token_ids), 4) = 0", name="token_ids_whole"),
        *digest_length("block_hash", "parent_hash"),
        *not_negative("position", "stored_nbytes"),
        Index(None, "expires_at", postgresql_where=_NOT_PINNED),
        Index("ix_kv_cache_nbytes", "tenant_id", postgresql_include=["stored_nbytes"]),  # what a tenant keeps
    )

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    namespace_id: Mapped[Int] = mapped_column(primary_key=True)
    block_hash: Mapped[Digest] = mapped_column(primary_key=True, comment="over the parent's hash and the tokens")
    parent_hash: Mapped[Digest | None]
    position: Mapped[Int] = mapped_column(comment="number of the block in its chain")
    token_ids: Mapped[bytes] = mapped_column(
        comment="four bytes each, the highest first; compared at every hit. arc_halo.token_ids() shows them"
    )
    stored_nbytes: Mapped[int] = mapped_column(comment="of its payloads: what a quota counts")
    is_logged: Mapped[bool] = mapped_column(comment="which of the two tables has its payloads")
    is_pinned: Mapped[bool] = mapped_column(default=False, server_default=_FALSE)
    expires_at: Mapped[dt.datetime | None] = mapped_column(comment="by the database's clock; null: never")
    created_at: Mapped[Now]

    namespace: Mapped[CacheNamespace] = relationship()


class _Payload:
    """Keys and values of one layer for one block."""

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    namespace_id: Mapped[Int] = mapped_column(primary_key=True)
    block_hash: Mapped[Digest] = mapped_column(primary_key=True)
    layer_index: Mapped[SmallInt] = mapped_column(primary_key=True)
    codec: Mapped[str] = mapped_column(comment="id of the codec that made both payloads")
    key_digest: Mapped[Digest] = mapped_column(comment="BLAKE3-256 of place and keys, checked at every hit")
    value_digest: Mapped[Digest] = mapped_column(comment="BLAKE3-256 of place and values, checked at every hit")
    key_payload: Mapped[bytes] = mapped_column(deferred=True, deferred_raiseload=True)
    value_payload: Mapped[bytes] = mapped_column(deferred=True, deferred_raiseload=True)


class KVCachePayload(_Payload, Base):
    """Keys and values of one layer for one block, logged: they survive a crash, and replicas have them."""

    __tablename__ = "kv_cache_payloads"
    __table_args__ = (
        ForeignKeyConstraint(*_OF_BLOCK, ondelete="CASCADE"),
        *digest_length("key_digest", "value_digest"),
        *not_negative("layer_index"),
    )


class KVCacheUnloggedPayload(_Payload, Base):
    """Keys and values of one layer for one block, unlogged: written faster, gone after a crash of the server."""

    __tablename__ = "kv_cache_unlogged_payloads"
    __table_args__ = (
        ForeignKeyConstraint(*_OF_BLOCK, ondelete="CASCADE"),
        *digest_length("key_digest", "value_digest"),
        *not_negative("layer_index"),
        {"prefixes": ["UNLOGGED"]},
    )


# Keys and values hardly compress: TOAST would spend the time of a hit to find that out.
declare(
    Base.metadata,
    *(
        f"ALTER TABLE arc_halo.{table} ALTER COLUMN {column} SET STORAGE EXTERNAL"
        for table in ("kv_cache_payloads", "kv_cache_unlogged_payloads")
        for column in ("key_payload", "value_payload")
    ),
)


class KVCacheStatistics(Base):
    """Hits of a block, apart from the block so that counting them rewrites a narrow row."""

    # No index on last_hit_at and free room on each page: updates then stay on their page and touch no index. Finding
    # the least recently used reads the whole of this narrow table, which happens once per sweep.
    __tablename__ = "kv_cache_statistics"
    __table_args__ = (
        ForeignKeyConstraint(*_OF_BLOCK, ondelete="CASCADE"),
        *not_negative("hit_count"),
        {"postgresql_with": {"fillfactor": 70}},
    )

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    namespace_id: Mapped[Int] = mapped_column(primary_key=True)
    block_hash: Mapped[Digest] = mapped_column(primary_key=True)
    hit_count: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    last_hit_at: Mapped[dt.datetime | None]


class CacheStatistics(Base):
    """What a namespace was asked for and gave, and what computing and reading cost: from that, which of them to do."""

    __tablename__ = "cache_statistics"
    __table_args__ = (
        ForeignKeyConstraint(*_IN_NAMESPACE, ondelete="CASCADE"),
        *not_negative(
            "lookup_count",
            "hit_count",
            "asked_token_count",
            "hit_token_count",
            "read_nbytes",
            "read_seconds",
            "computed_token_count",
            "computed_seconds",
        ),
        {"postgresql_with": {"fillfactor": 70}},
    )

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    namespace_id: Mapped[Int] = mapped_column(primary_key=True)
    lookup_count: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    hit_count: Mapped[int] = mapped_column(default=0, server_default=_ZERO, comment="lookups that found something")
    asked_token_count: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    hit_token_count: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    read_nbytes: Mapped[int] = mapped_column(default=0, server_default=_ZERO, comment="raw bytes of what was read")
    read_seconds: Mapped[float] = mapped_column(default=0.0, server_default=_ZERO)
    computed_token_count: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    computed_seconds: Mapped[float] = mapped_column(default=0.0, server_default=_ZERO)


class CacheQuota(Base):
    """How many bytes a tenant may keep in one kind of cache."""

    __tablename__ = "cache_quotas"
    __table_args__ = (closed_set("kind", *CACHE_KINDS), *not_negative("max_nbytes"))

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    max_nbytes: Mapped[int]


class CacheAudit(Base):
    """Content that was found and not served, and why."""

    __tablename__ = "cache_audits"
    __table_args__ = (
        closed_set("kind", *CACHE_KINDS),
        closed_set("reason", "other_tokens", "other_parent", "bad_payload", "missing_payload", "unreadable"),
        Index("ix_cache_audits_occurred_at", "occurred_at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    tenant_id: Mapped[TenantId]
    namespace_id: Mapped[Int | None] = mapped_column(comment="of its time: namespaces come and go")
    kind: Mapped[str]
    reason: Mapped[str]
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict, server_default=EMPTY_OBJECT)
    occurred_at: Mapped[Now]


class CacheLease(Base):
    """Somebody is computing what has this key: the others wait for the result, as long as the lease is renewed."""

    __tablename__ = "cache_leases"
    __table_args__ = (*digest_length("key_digest"),)

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    key_digest: Mapped[Digest] = mapped_column(primary_key=True)
    holder_id: Mapped[uuid.UUID]
    description: Mapped[str] = mapped_column(comment="who computes: host and process")
    started_at: Mapped[Now]
    expires_at: Mapped[dt.datetime] = mapped_column(comment="by the database's clock; renewed while it is computed")


class CachedActivation(Base):
    """The output of a hook point of a model for one input, kept so that it need not be computed again."""

    __tablename__ = "activation_cache"
    __table_args__ = (
        ForeignKeyConstraint(*_IN_NAMESPACE, ondelete="CASCADE"),
        ForeignKeyConstraint(
            ["tenant_id", "tensor_id"],
            ["arc_halo.tensor_metadata.tenant_id", "arc_halo.tensor_metadata.id"],
            ondelete="RESTRICT",
        ),
        *digest_length("input_digest"),
        *not_negative("hit_count", "recompute_ms", "read_ms"),
        Index(None, "tenant_id", "tensor_id"),
        Index(None, "expires_at", postgresql_where=_NOT_PINNED),
    )

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    namespace_id: Mapped[Int] = mapped_column(primary_key=True)
    hook_point: Mapped[str] = mapped_column(primary_key=True, comment="module of the model, and place in it")
    input_digest: Mapped[Digest] = mapped_column(primary_key=True)
    tensor_id: Mapped[uuid.UUID]
    hit_count: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    last_hit_at: Mapped[dt.datetime | None]
    recompute_ms: Mapped[float | None] = mapped_column(comment="measured time to compute it")
    read_ms: Mapped[float | None] = mapped_column(comment="measured time to read it from here")
    is_pinned: Mapped[bool] = mapped_column(default=False, server_default=_FALSE)
    expires_at: Mapped[dt.datetime | None] = mapped_column(comment="by the database's clock; null: never")
    created_at: Mapped[Now]

    namespace: Mapped[CacheNamespace] = relationship(
        primaryjoin="and_(CachedActivation.tenant_id == CacheNamespace.tenant_id,"
        " foreign(CachedActivation.namespace_id) == CacheNamespace.id)"
    )
    tensor: Mapped[Tensor] = relationship(primaryjoin="foreign(CachedActivation.tensor_id) == Tensor.id")


def _nearest_prompt_index(dimension: int) -> Index:
    return Index(
        f"ix_response_cache_vector_{dimension}",
        text(f"((embedding::public.vector({dimension}))) public.vector_cosine_ops"),
        postgresql_using="hnsw",
        postgresql_where=text(f"dimension = {dimension}"),
    )


class CachedResponse(Base):
    """An answer to a prompt, found again by the same prompt, or by one that means the same."""

    __tablename__ = "response_cache"
    __table_args__ = (
        ForeignKeyConstraint(*_IN_NAMESPACE, ondelete="CASCADE"),
        UniqueConstraint(
            "tenant_id", "namespace_id", "settings_digest", "prompt_digest", name="uq_response_cache_asked"
        ),
        *digest_length("settings_digest", "prompt_digest"),
        *not_negative("hit_count", "compute_seconds", "stored_nbytes"),
        CheckConstraint("dimension = public.vector_dims(embedding)", name="dimension"),
        CheckConstraint("(embedding IS NULL) = (dimension IS NULL)", name="dimension_of_embedding"),
        CheckConstraint("(embedding IS NULL) = (embedder IS NULL)", name="embedder_of_embedding"),
        *(_nearest_prompt_index(dimension) for dimension in VECTOR_DIMENSIONS),
        Index("ix_response_cache_nbytes", "tenant_id", postgresql_include=["stored_nbytes"]),  # what a tenant keeps
        Index(None, "expires_at", postgresql_where=_NOT_PINNED),
    )

    id: Mapped[Key]
    tenant_id: Mapped[TenantId]
    namespace_id: Mapped[Int]
    settings_digest: Mapped[Digest] = mapped_column(comment="of all that was asked for but the prompt")
    prompt_digest: Mapped[Digest]
    settings: Mapped[dict[str, Any]] = mapped_column(
        JSONB, default=dict, server_default=EMPTY_OBJECT, comment="temperature, top_p, length, seed, ..."
    )
    prompt: Mapped[str] = mapped_column(comment="compared at every exact hit")
    response: Mapped[str]
    details: Mapped[dict[str, Any]] = mapped_column(
        JSONB,
        default=dict,
        server_default=EMPTY_OBJECT,
        comment="what came with the response: tokens, stop reason, ...",
    )
    embedder: Mapped[str | None] = mapped_column(comment="what made the embedding; others are not compared")
    dimension: Mapped[Int | None]
    embedding: Mapped[np.ndarray | None] = mapped_column(Vector, deferred=True)
    compute_seconds: Mapped[float | None] = mapped_column(comment="what a hit saves")
    stored_nbytes: Mapped[int] = mapped_column(comment="of texts and vector: what a quota counts")
    hit_count: Mapped[int] = mapped_column(default=0, server_default=_ZERO)
    last_hit_at: Mapped[dt.datetime | None]
    is_pinned: Mapped[bool] = mapped_column(default=False, server_default=_FALSE)
    expires_at: Mapped[dt.datetime | None] = mapped_column(comment="by the database's clock; null: never")
    created_at: Mapped[Now]

    namespace: Mapped[CacheNamespace] = relationship(
        primaryjoin="and_(CachedResponse.tenant_id == CacheNamespace.tenant_id,"
        " foreign(CachedResponse.namespace_id) == CacheNamespace.id)"
    )

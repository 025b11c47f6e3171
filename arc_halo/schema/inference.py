"""Inference: sessions and their metrics, caches of keys and values and of activations, attention patterns.

Cached content belongs to the digest of the weights it was computed with, never to a model's name.
"""

# ruff: noqa: TC001, TC003  (SQLAlchemy evaluates the annotations of mapped classes)

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Identity, Index, Integer, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY, REAL
from sqlalchemy.orm import Mapped, mapped_column, relationship

from arc_halo.autogenerate import declare, declare_partitions
from arc_halo.schema.base import Base
from arc_halo.schema.columns import (
    Digest,
    Int,
    Key,
    Now,
    SmallInt,
    Tenanted,
    TenantId,
    Timestamped,
    closed_set,
    digest_length,
    not_negative,
    reference,
)
from arc_halo.schema.core import EMPTY_OBJECT, Model, TransformerLayer
from arc_halo.schema.tensors import Tensor

_NOT_PINNED = text("expires_at IS NOT NULL AND NOT is_pinned")


class InferenceSession(Timestamped, Tenanted, Base):
    """A model in use: how it generates, and what it was asked so far."""

    __tablename__ = "inference_sessions"
    __table_args__ = (
        closed_set("status", "active", "completed", "failed"),
        *digest_length("weights_digest"),
        *not_negative("request_count", "prompt_token_count", "generated_token_count", "cached_token_count"),
    )

    id: Mapped[Key]
    model_id: Mapped[uuid.UUID] = mapped_column(reference("models"), index=True)
    weights_digest: Mapped[Digest | None] = mapped_column(comment="of the weights that were loaded")
    name: Mapped[str | None]
    status: Mapped[str] = mapped_column(default="active", server_default="active")
    config: Mapped[dict[str, Any]] = mapped_column(
        default=dict, server_default=EMPTY_OBJECT, comment="temperature, top_k, top_p, seed, ..."
    )
    request_count: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    prompt_token_count: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    generated_token_count: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    cached_token_count: Mapped[int] = mapped_column(
        default=0, server_default=text("0"), comment="prompt tokens whose keys and values came from the cache"
    )
    ended_at: Mapped[dt.datetime | None]

    model: Mapped[Model] = relationship()
    attention_patterns: Mapped[list[AttentionPattern]] = relationship(
        back_populates="inference_session", passive_deletes="all"
    )


class CacheNamespace(Base):
    """Everything that must be equal for keys and values to be the same, under one digest."""

    __tablename__ = "cache_namespaces"
    __table_args__ = (
        UniqueConstraint("tenant_id", "digest"),
        *digest_length("digest", "weights_digest", "adapter_digest", "tokenizer_digest", "config_digest"),
        CheckConstraint("block_token_count > 0", name="block_token_count_positive"),
        Index(None, "tenant_id", "weights_digest"),
    )

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    digest: Mapped[Digest] = mapped_column(comment="BLAKE3-256 over all columns below but the last")
    weights_digest: Mapped[Digest]
    adapter_digest: Mapped[Digest | None]
    tokenizer_digest: Mapped[Digest | None]
    config_digest: Mapped[Digest] = mapped_column(comment="of the architecture with its position encoding")
    dtype: Mapped[str]
    layout: Mapped[str] = mapped_column(comment="axes of a payload, e.g. kv_heads,tokens,head_dim")
    block_token_count: Mapped[Int]
    salt: Mapped[bytes] = mapped_column(comment="the tenant's: equal tokens of two tenants have other hashes")
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
        CheckConstraint("(parent_hash IS NULL) = (position = 0)", name="only_first_without_parent"),
        CheckConstraint("cardinality(token_ids) > 0", name="token_ids_not_empty"),
        *digest_length("block_hash", "parent_hash"),
        *not_negative("position", "stored_nbytes"),
        Index(None, "expires_at", postgresql_where=_NOT_PINNED),
    )

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    namespace_id: Mapped[Int] = mapped_column(primary_key=True)
    block_hash: Mapped[Digest] = mapped_column(primary_key=True, comment="over the parent's hash and the tokens")
    # No foreign key: blocks of a chain are evicted one by one, and a lookup ends at the first that is missing.
    parent_hash: Mapped[Digest | None]
    position: Mapped[Int] = mapped_column(comment="number of the block in its chain")
    token_ids: Mapped[list[int]] = mapped_column(ARRAY(Integer), comment="compared at every hit")
    stored_nbytes: Mapped[int] = mapped_column(comment="of its payloads: what a quota counts")
    is_pinned: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    expires_at: Mapped[dt.datetime | None] = mapped_column(comment="by the database's clock; null: never")
    created_at: Mapped[Now]

    namespace: Mapped[CacheNamespace] = relationship()
    payloads: Mapped[list[KVCachePayload]] = relationship(
        back_populates="block", passive_deletes="all", order_by="KVCachePayload.layer_index"
    )


class KVCachePayload(Base):
    """Keys and values of one layer for one block; an operator may make this table UNLOGGED."""

    __tablename__ = "kv_cache_payloads"
    __table_args__ = (
        ForeignKeyConstraint(*_OF_BLOCK, ondelete="CASCADE"),
        *digest_length("key_digest", "value_digest"),
        *not_negative("layer_index"),
    )

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    namespace_id: Mapped[Int] = mapped_column(primary_key=True)
    block_hash: Mapped[Digest] = mapped_column(primary_key=True)
    layer_index: Mapped[SmallInt] = mapped_column(primary_key=True)
    codec: Mapped[str] = mapped_column(comment="id of the codec that made both payloads")
    key_digest: Mapped[Digest] = mapped_column(comment="BLAKE3-256 of the raw keys, checked at every hit")
    value_digest: Mapped[Digest] = mapped_column(comment="BLAKE3-256 of the raw values, checked at every hit")
    key_payload: Mapped[bytes] = mapped_column(deferred=True, deferred_raiseload=True)
    value_payload: Mapped[bytes] = mapped_column(deferred=True, deferred_raiseload=True)

    block: Mapped[KVCacheBlock] = relationship(back_populates="payloads")


# Keys and values hardly compress: TOAST would spend the time of a hit to find that out.
declare(
    Base.metadata,
    "ALTER TABLE arc_halo.kv_cache_payloads ALTER COLUMN key_payload SET STORAGE EXTERNAL",
    "ALTER TABLE arc_halo.kv_cache_payloads ALTER COLUMN value_payload SET STORAGE EXTERNAL",
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
    hit_count: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    last_hit_at: Mapped[dt.datetime | None]


class CachedActivation(Base):
    """The output of a hook point of a model for one input, kept so that it need not be computed again."""

    __tablename__ = "activation_cache"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "tensor_id"],
            ["arc_halo.tensor_metadata.tenant_id", "arc_halo.tensor_metadata.id"],
            ondelete="RESTRICT",
        ),
        *digest_length("weights_digest", "input_digest"),
        *not_negative("hit_count", "recompute_ms", "read_ms"),
        Index(None, "tenant_id", "tensor_id"),
        Index(None, "expires_at", postgresql_where=_NOT_PINNED),
    )

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    weights_digest: Mapped[Digest] = mapped_column(primary_key=True)
    hook_point: Mapped[str] = mapped_column(primary_key=True, comment="layer and place in it")
    input_digest: Mapped[Digest] = mapped_column(primary_key=True)
    tensor_id: Mapped[uuid.UUID]
    hit_count: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    last_hit_at: Mapped[dt.datetime | None]
    recompute_ms: Mapped[float | None] = mapped_column(comment="measured time to compute it")
    read_ms: Mapped[float | None] = mapped_column(comment="measured time to read it from here")
    is_pinned: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    expires_at: Mapped[dt.datetime | None] = mapped_column(comment="by the database's clock; null: never")
    created_at: Mapped[Now]

    tensor: Mapped[Tensor] = relationship(primaryjoin="foreign(CachedActivation.tensor_id) == Tensor.id")


class InferenceMetric(Base):
    """What one request took: latency, tokens, memory."""

    __tablename__ = "inference_metrics"
    __table_args__ = (
        *not_negative(
            "request_number",
            "latency_seconds",
            "time_to_first_token_seconds",
            "tokens_per_second",
            "prompt_token_count",
            "generated_token_count",
            "cached_token_count",
            "memory_nbytes",
        ),
        {"postgresql_partition_by": "RANGE (recorded_at)"},
    )

    inference_session_id: Mapped[uuid.UUID] = mapped_column(reference("inference_sessions"), primary_key=True)
    request_number: Mapped[int] = mapped_column(primary_key=True)
    recorded_at: Mapped[Now] = mapped_column(primary_key=True)
    latency_seconds: Mapped[float]
    time_to_first_token_seconds: Mapped[float | None]
    tokens_per_second: Mapped[float | None] = mapped_column(comment="generated, after the first")
    prompt_token_count: Mapped[Int | None]
    generated_token_count: Mapped[Int | None]
    cached_token_count: Mapped[Int | None]
    memory_nbytes: Mapped[int | None] = mapped_column(comment="peak, of the process or the device")

    inference_session: Mapped[InferenceSession] = relationship()


declare_partitions(InferenceMetric.__table__, "SELECT arc_halo.ensure_time_partitions('arc_halo.inference_metrics')")


class AttentionPattern(Base):
    """Where one head looked in one request: always a summary, the full matrix on request."""

    __tablename__ = "attention_patterns"
    __table_args__ = (
        UniqueConstraint(
            "inference_session_id", "request_number", "layer_id", "head_index", name="uq_attention_patterns_head"
        ),
        *not_negative("request_number", "head_index"),
        CheckConstraint(
            "cardinality(top_positions) = cardinality(token_ids) * top_count", name="top_positions_per_token"
        ),
        CheckConstraint("cardinality(top_weights) = cardinality(top_positions)", name="top_weights_per_position"),
    )

    id: Mapped[Key]
    inference_session_id: Mapped[uuid.UUID] = mapped_column(reference("inference_sessions"))
    request_number: Mapped[int]
    layer_id: Mapped[uuid.UUID] = mapped_column(reference("transformer_layers"), index=True)
    head_index: Mapped[Int]
    token_ids: Mapped[list[int]] = mapped_column(ARRAY(Integer))
    mean_entropy: Mapped[float] = mapped_column(comment="nats, over the queries")
    mean_distance: Mapped[float] = mapped_column(comment="tokens between query and key, weighted by attention")
    first_token_share: Mapped[float] = mapped_column(comment="attention that falls on the first token")
    entropies: Mapped[list[float] | None] = mapped_column(ARRAY(REAL), comment="nats, of each query")
    top_count: Mapped[SmallInt] = mapped_column(default=0, server_default=text("0"), comment="keys kept per query")
    top_positions: Mapped[list[int]] = mapped_column(
        ARRAY(Integer), default=list, server_default=text("'{}'::integer[]"), comment="query by query, strongest first"
    )
    top_weights: Mapped[list[float]] = mapped_column(
        ARRAY(REAL), default=list, server_default=text("'{}'::real[]"), comment="of the keys at top_positions"
    )
    tensor_id: Mapped[uuid.UUID | None] = mapped_column(
        reference("tensor_metadata", ondelete="RESTRICT"), index=True, comment="the full matrix"
    )
    created_at: Mapped[Now]

    inference_session: Mapped[InferenceSession] = relationship(back_populates="attention_patterns")
    layer: Mapped[TransformerLayer] = relationship()
    tensor: Mapped[Tensor | None] = relationship()

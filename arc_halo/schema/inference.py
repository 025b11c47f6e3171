"""Inference: sessions and their metrics, attention patterns; what is cached stands in `caches`."""

# ruff: noqa: TC001, TC003  (SQLAlchemy evaluates the annotations of mapped classes)

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

from sqlalchemy import CheckConstraint, Integer, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY, REAL
from sqlalchemy.orm import Mapped, mapped_column, relationship

from arc_halo.autogenerate import declare_partitions
from arc_halo.schema.base import Base
from arc_halo.schema.columns import (
    Digest,
    Int,
    Key,
    Now,
    SmallInt,
    Tenanted,
    Timestamped,
    closed_set,
    digest_length,
    not_negative,
    reference,
)
from arc_halo.schema.core import EMPTY_OBJECT, Model, TransformerLayer
from arc_halo.schema.tensors import Tensor


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
    previous_token_share: Mapped[float | None] = mapped_column(comment="attention that falls on the token before")
    induction_share: Mapped[float | None] = mapped_column(
        comment="attention that falls behind an earlier place of the same token; null where none is repeated"
    )
    entropies: Mapped[list[float] | None] = mapped_column(ARRAY(REAL), comment="nats, of each query")
    top_count: Mapped[SmallInt] = mapped_column(default=0, server_default=text("0"), comment="keys kept per query")
    top_positions: Mapped[list[int]] = mapped_column(
        ARRAY(Integer), default=list, server_default=text("'{}'::integer[]"), comment="query by query, strongest first"
    )
    top_weights: Mapped[list[float]] = mapped_column(
        ARRAY(REAL), default=list, server_default=text("'{}'::real[]"), comment="of the keys at top_positions"
    )
    tensor_id: Mapped[uuid.UUID | None] = mapped_column(
        reference("tensor_metadata", ondelete="RESTRICT"),
        index=True,
        comment="the full matrix; one axis: its lower triangle, row by row",
    )
    created_at: Mapped[Now]

    inference_session: Mapped[InferenceSession] = relationship(back_populates="attention_patterns")
    layer: Mapped[TransformerLayer] = relationship()
    tensor: Mapped[Tensor | None] = relationship()

"""How models are used, as views: what the caches hold and give, and how fast requests were answered."""

# ruff: noqa: TC001, TC003  (SQLAlchemy evaluates the annotations of mapped classes)

from __future__ import annotations

import datetime as dt
import uuid
from types import MappingProxyType

from sqlalchemy import BigInteger, Boolean, Column, Date, Double, Integer, LargeBinary, Text, Uuid
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP
from sqlalchemy.orm import Mapped, relationship

from arc_halo.schema.base import Base
from arc_halo.schema.inference import InferenceSession
from arc_halo.schema.views import ReadOnly, view


class CacheStatus(ReadOnly, Base):
    """Each namespace of the caches: whose it is, what it holds, how often it was asked and gave."""

    __table__ = view(
        "v_cache_status",
        Column("tenant_id", Integer),
        Column("namespace_id", Integer),
        Column("kind", Text),
        Column("precision", Text),
        Column("dtype", Text),
        Column("layout", Text),
        Column("block_token_count", Integer),
        Column("weights_digest", LargeBinary),
        Column("models", ARRAY(Text), comment="those that have the weights now and are not archived, as name@version"),
        Column("is_servable", Boolean, comment="false: no lookup finds it any more, and the next sweep deletes it"),
        Column("entry_count", BigInteger),
        Column("pinned_count", BigInteger),
        Column("stored_nbytes", BigInteger, comment="of activations the bytes as they are used"),
        Column("expired_count", BigInteger, comment="what the next sweep deletes"),
        Column("lookup_count", BigInteger),
        Column("hit_count", BigInteger),
        Column("asked_token_count", BigInteger),
        Column("hit_token_count", BigInteger),
        Column("read_nbytes_per_second", Double),
        Column("computed_tokens_per_second", Double),
        Column("created_at", TIMESTAMP(timezone=True)),
    )
    __mapper_args__ = MappingProxyType({"primary_key": [__table__.c.tenant_id, __table__.c.namespace_id]})

    tenant_id: Mapped[int]
    namespace_id: Mapped[int]
    kind: Mapped[str]
    precision: Mapped[str]
    dtype: Mapped[str]
    layout: Mapped[str]
    block_token_count: Mapped[int | None]
    weights_digest: Mapped[bytes]
    models: Mapped[list[str]]
    is_servable: Mapped[bool]
    entry_count: Mapped[int]
    pinned_count: Mapped[int]
    stored_nbytes: Mapped[int]
    expired_count: Mapped[int]
    lookup_count: Mapped[int]
    hit_count: Mapped[int]
    asked_token_count: Mapped[int]
    hit_token_count: Mapped[int]
    read_nbytes_per_second: Mapped[float | None]
    computed_tokens_per_second: Mapped[float | None]
    created_at: Mapped[dt.datetime]


class InferenceLatency(ReadOnly, Base):
    """Each day of each inference session: percentiles of what its requests took, tokens, memory."""

    __table__ = view(
        "v_inference_latency",
        Column("inference_session_id", Uuid),
        Column("session_name", Text),
        Column("model_id", Uuid),
        Column("model", Text, comment="name@version"),
        Column("day", Date, comment="in UTC"),
        Column("request_count", BigInteger),
        Column("latency_p50_seconds", Double, comment="interpolated between neighbours, as every percentile here"),
        Column("latency_p90_seconds", Double),
        Column("latency_p99_seconds", Double),
        Column("time_to_first_token_p50_seconds", Double, comment="of the requests that say it, as the next five"),
        Column("time_to_first_token_p90_seconds", Double),
        Column("time_to_first_token_p99_seconds", Double),
        Column("tokens_per_second_p50", Double, comment="generated, after the first"),
        Column("tokens_per_second_p90", Double, comment="a tenth of the requests was faster"),
        Column("tokens_per_second_p99", Double),
        Column("prompt_token_count", BigInteger),
        Column("generated_token_count", BigInteger),
        Column("cached_token_count", BigInteger),
        Column("cached_share", Double, comment="of the prompt tokens, over requests that say both; null without any"),
        Column("max_memory_nbytes", BigInteger),
    )
    __mapper_args__ = MappingProxyType({"primary_key": [__table__.c.inference_session_id, __table__.c.day]})

    inference_session_id: Mapped[uuid.UUID]
    session_name: Mapped[str | None]
    model_id: Mapped[uuid.UUID]
    model: Mapped[str]
    day: Mapped[dt.date]
    request_count: Mapped[int]
    latency_p50_seconds: Mapped[float]
    latency_p90_seconds: Mapped[float]
    latency_p99_seconds: Mapped[float]
    time_to_first_token_p50_seconds: Mapped[float | None]
    time_to_first_token_p90_seconds: Mapped[float | None]
    time_to_first_token_p99_seconds: Mapped[float | None]
    tokens_per_second_p50: Mapped[float | None]
    tokens_per_second_p90: Mapped[float | None]
    tokens_per_second_p99: Mapped[float | None]
    prompt_token_count: Mapped[int]
    generated_token_count: Mapped[int]
    cached_token_count: Mapped[int]
    cached_share: Mapped[float | None]
    max_memory_nbytes: Mapped[int | None]

    inference_session: Mapped[InferenceSession] = relationship(
        viewonly=True, primaryjoin="foreign(InferenceLatency.inference_session_id) == InferenceSession.id"
    )

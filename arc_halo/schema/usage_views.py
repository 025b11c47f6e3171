"""How models are used, as views: what the caches hold and give."""

# ruff: noqa: TC002, TC003  (SQLAlchemy evaluates the annotations of mapped classes)

from __future__ import annotations

import datetime as dt
from types import MappingProxyType

from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, LargeBinary, Text
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP
from sqlalchemy.orm import Mapped

from arc_halo.schema.base import Base
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

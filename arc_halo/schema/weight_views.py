"""Views over weights: what models take, what they share, how they descend, and what is not sound in them."""

# ruff: noqa: TC002, TC003  (SQLAlchemy evaluates the annotations of mapped classes)

from __future__ import annotations

import uuid
from types import MappingProxyType

from sqlalchemy import BigInteger, Column, Integer, Text, Uuid
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped

from arc_halo.schema.base import Base
from arc_halo.schema.views import ReadOnly, view


class ModelStorage(ReadOnly, Base):
    """Where each model's bytes went: its own, those it shares, in the database or away, as deltas."""

    __table__ = view(
        "v_model_storage",
        Column("model_id", Uuid),
        Column("name", Text),
        Column("version", Text),
        Column("raw_nbytes", BigInteger, comment="all weights as they lie in files"),
        Column("chunk_count", BigInteger, comment="different chunks"),
        Column("distinct_nbytes", BigInteger, comment="raw bytes of those"),
        Column("stored_nbytes", BigInteger, comment="what they take; without bases that only deltas need"),
        Column("shared_nbytes", BigInteger, comment="of stored_nbytes, what other models use, too"),
        Column("own_nbytes", BigInteger, comment="of stored_nbytes, what goes when the model goes"),
        Column("blob_nbytes", BigInteger, comment="of stored_nbytes, what is in the blob store"),
        Column("delta_nbytes", BigInteger, comment="of stored_nbytes, what is a difference from other chunks"),
        Column("max_depth", Integer, comment="most deltas that lean on one another"),
    )
    __mapper_args__ = MappingProxyType({"primary_key": [__table__.c.model_id]})

    model_id: Mapped[uuid.UUID]
    name: Mapped[str]
    version: Mapped[str]
    raw_nbytes: Mapped[int]
    chunk_count: Mapped[int]
    distinct_nbytes: Mapped[int]
    stored_nbytes: Mapped[int]
    shared_nbytes: Mapped[int]
    own_nbytes: Mapped[int]
    blob_nbytes: Mapped[int]
    delta_nbytes: Mapped[int]
    max_depth: Mapped[int]


class ModelFamily(ReadOnly, Base):
    """Families by lineage: each model below what it was made from, with the bytes that it added."""

    __table__ = view(
        "v_model_family",
        Column("root_id", Uuid),
        Column("model_id", Uuid),
        Column("parent_id", Uuid),
        Column("kind", Text, comment="how it was made from its parent"),
        Column("depth", Integer),
        Column("path", ARRAY(Uuid), comment="from the root to the model; with two parents it stands there twice"),
        Column("name", Text),
        Column("version", Text),
        Column("raw_nbytes", BigInteger),
        Column("stored_nbytes", BigInteger),
        Column("added_nbytes", BigInteger, comment="of stored_nbytes, what none of the models above it uses"),
    )
    __mapper_args__ = MappingProxyType(
        {"primary_key": [__table__.c.root_id, __table__.c.model_id, __table__.c.parent_id, __table__.c.kind]}
    )

    root_id: Mapped[uuid.UUID]
    model_id: Mapped[uuid.UUID]
    parent_id: Mapped[uuid.UUID | None]
    kind: Mapped[str | None]
    depth: Mapped[int]
    path: Mapped[list[uuid.UUID]]
    name: Mapped[str]
    version: Mapped[str]
    raw_nbytes: Mapped[int]
    stored_nbytes: Mapped[int]
    added_nbytes: Mapped[int]


class DuplicateTensor(ReadOnly, Base):
    """Tensors that several weights use, and the bytes that need not be stored for it."""

    __table__ = view(
        "v_duplicate_tensors",
        Column("tensor_id", Uuid),
        Column("dtype", Text),
        Column("shape", ARRAY(BigInteger)),
        Column("nbytes", BigInteger),
        Column("weight_count", BigInteger),
        Column("model_count", BigInteger),
        Column("saved_nbytes", BigInteger, comment="raw bytes of all uses but one"),
        Column("used_as", ARRAY(Text), comment="model@version and name of each use"),
    )
    __mapper_args__ = MappingProxyType({"primary_key": [__table__.c.tensor_id]})

    tensor_id: Mapped[uuid.UUID]
    dtype: Mapped[str]
    shape: Mapped[list[int]]
    nbytes: Mapped[int]
    weight_count: Mapped[int]
    model_count: Mapped[int]
    saved_nbytes: Mapped[int]
    used_as: Mapped[list[str]]


class UnsoundLayer(ReadOnly, Base):
    """Layers whose weights hold NaN or infinite elements."""

    __table__ = view(
        "v_unsound_layers",
        Column("layer_id", Uuid),
        Column("model_id", Uuid),
        Column("model_name", Text),
        Column("version", Text),
        Column("path", Text),
        Column("nan_count", BigInteger),
        Column("inf_count", BigInteger),
        Column("weights", ARRAY(Text), comment="names of those weights"),
    )
    __mapper_args__ = MappingProxyType({"primary_key": [__table__.c.layer_id]})

    layer_id: Mapped[uuid.UUID]
    model_id: Mapped[uuid.UUID]
    model_name: Mapped[str]
    version: Mapped[str]
    path: Mapped[str]
    nan_count: Mapped[int]
    inf_count: Mapped[int]
    weights: Mapped[list[str]]

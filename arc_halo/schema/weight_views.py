"""Views over weights: what models take, what they share, how they descend, and what is not sound in them."""

# ruff: noqa: TC002, TC003  (SQLAlchemy evaluates the annotations of mapped classes)

from __future__ import annotations

import uuid
from types import MappingProxyType

from sqlalchemy import BigInteger, Column, Double, Integer, Text, Uuid
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
        Column("stored_nbytes", BigInteger, comment="what they take; without bases that only their deltas need"),
        Column("shared_nbytes", BigInteger, comment="of stored_nbytes, what other models use, too"),
        Column("own_nbytes", BigInteger, comment="of stored_nbytes, what no other model uses"),
        Column("database_nbytes", BigInteger, comment="of stored_nbytes, what is in the database"),
        Column("blob_nbytes", BigInteger, comment="of stored_nbytes, what is in the blob store"),
        Column("delta_count", BigInteger, comment="chunks that are stored as a difference from another"),
        Column("delta_nbytes", BigInteger, comment="of stored_nbytes, what those take"),
        Column("base_nbytes", BigInteger, comment="stored bytes that those lean on and the model itself does not use"),
        Column("max_depth", Integer, comment="most deltas that lean on one another"),
        Column("ratio", Double, comment="stored_nbytes to raw_nbytes; null without weights"),
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
    database_nbytes: Mapped[int]
    blob_nbytes: Mapped[int]
    delta_count: Mapped[int]
    delta_nbytes: Mapped[int]
    base_nbytes: Mapped[int]
    max_depth: Mapped[int]
    ratio: Mapped[float | None]


class ModelFamily(ReadOnly, Base):
    """Families by lineage: each model below what it was made from, with the bytes that it added.

    A family is all that was made from one root, which was made from nothing. What has several roots is in several
    families, once in each. In the order of ``path`` parents stand before children, and the bytes that the members added
    are what the family takes.
    """

    __table__ = view(
        "v_model_family",
        Column("root_id", Uuid),
        Column("model_id", Uuid),
        Column("parent_id", Uuid),
        Column("kind", Text, comment="how it was made from its parent"),
        Column("depth", Integer, comment="0 for the root"),
        Column("path", ARRAY(Uuid), comment="from the root to the model"),
        Column("other_parent_ids", ARRAY(Uuid), comment="what else it was made from; it stands below its first parent"),
        Column("name", Text),
        Column("version", Text),
        Column("raw_nbytes", BigInteger),
        Column("stored_nbytes", BigInteger),
        Column("added_nbytes", BigInteger, comment="of stored_nbytes, what no member before it, by path, uses"),
        Column("saved_nbytes", BigInteger, comment="raw_nbytes, which a file of its own takes, less added_nbytes"),
    )
    __mapper_args__ = MappingProxyType({"primary_key": [__table__.c.root_id, __table__.c.model_id]})

    root_id: Mapped[uuid.UUID]
    model_id: Mapped[uuid.UUID]
    parent_id: Mapped[uuid.UUID | None]
    kind: Mapped[str | None]
    depth: Mapped[int]
    path: Mapped[list[uuid.UUID]]
    other_parent_ids: Mapped[list[uuid.UUID]]
    name: Mapped[str]
    version: Mapped[str]
    raw_nbytes: Mapped[int]
    stored_nbytes: Mapped[int]
    added_nbytes: Mapped[int]
    saved_nbytes: Mapped[int]


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
    """Layers whose weights hold NaN or infinite elements, by the statistics of their tensors."""

    __table__ = view(
        "v_unsound_layers",
        Column("model_id", Uuid),
        Column("layer_id", Uuid, comment="null for all weights that belong to no layer"),
        Column("model_name", Text),
        Column("version", Text),
        Column("path", Text),
        Column("layer_type", Text),
        Column("nan_count", BigInteger),
        Column("inf_count", BigInteger),
        Column("weights", ARRAY(Text), comment="names of those weights"),
    )
    __mapper_args__ = MappingProxyType({"primary_key": [__table__.c.model_id, __table__.c.layer_id]})

    model_id: Mapped[uuid.UUID]
    layer_id: Mapped[uuid.UUID | None]
    model_name: Mapped[str]
    version: Mapped[str]
    path: Mapped[str | None]
    layer_type: Mapped[str | None]
    nan_count: Mapped[int]
    inf_count: Mapped[int]
    weights: Mapped[list[str]]

"""Tensors: content-addressed chunks, the tensors made of them, the weights that use those, and embeddings."""

# ruff: noqa: TC001, TC002, TC003  (SQLAlchemy evaluates the annotations of mapped classes)

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    ForeignKeyConstraint,
    Index,
    SmallInteger,
    UniqueConstraint,
    and_,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column, relationship

from arc_halo.autogenerate import declare, declare_partitions
from arc_halo.schema.base import Base
from arc_halo.schema.columns import (
    Digest,
    Int,
    Key,
    Now,
    SmallInt,
    TenantId,
    Timestamped,
    closed_set,
    digest_length,
    not_negative,
    reference,
)
from arc_halo.schema.core import Model, TransformerLayer
from arc_halo.schema.html import TensorHtml
from arc_halo.schema.types import Vector

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

SKETCH_DIMENSION = 64
RELATIVES_NBYTES = 1 << 16
WEIGHT_KINDS = ("token", "position", "segment")
ACROSS_OWNERS_KINDS = ("text", "run", "tensor")


class Tensor(TensorHtml, Base):
    """One row per distinct tensor content: what it is, how it is cut, what is known of its values."""

    __tablename__ = "tensor_metadata"
    __table_args__ = (
        UniqueConstraint("tenant_id", "digest"),
        UniqueConstraint("tenant_id", "id"),
        *digest_length("digest", "seal"),
        *not_negative("nbytes", "element_count"),
        CheckConstraint("chunk_nbytes > 0", name="chunk_nbytes_positive"),
        closed_set("compression", "none", "fast", "balanced", "dense"),
        # prune asks for what nobody has touched since
        Index("ix_tensor_metadata_touched_at", "touched_at"),
        # finds relatives; what is smaller than this is not worth a delta
        Index(
            "ix_tensor_metadata_sketch",
            text("sketch public.vector_cosine_ops"),
            postgresql_using="hnsw",
            postgresql_where=text(f"nbytes >= {RELATIVES_NBYTES}"),
        ),
    )

    id: Mapped[Key]
    tenant_id: Mapped[TenantId]
    digest: Mapped[Digest] = mapped_column(comment="BLAKE3-256 over dtype, shape and bytes")
    dtype: Mapped[str] = mapped_column(
        comment="as safetensors spells it, or a block type of ggml: F32, BF16, Q4_K, ..."
    )
    shape: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    nbytes: Mapped[int]
    element_count: Mapped[int]
    chunk_nbytes: Mapped[int] = mapped_column(comment="raw bytes of every chunk but the last")
    compression: Mapped[str] = mapped_column(comment="the policy its first writer asked for")
    seal: Mapped[Digest] = mapped_column(
        comment="BLAKE3-256 over this row's digest, dtype, shape, chunk size and its chunks' digests in order"
    )
    min_value: Mapped[float | None] = mapped_column(comment="over finite elements, as the other statistics")
    max_value: Mapped[float | None]
    mean: Mapped[float | None]
    std: Mapped[float | None] = mapped_column(comment="population standard deviation")
    l2_norm: Mapped[float | None]
    zero_fraction: Mapped[float | None]
    nan_count: Mapped[int | None]
    inf_count: Mapped[int | None]
    sketch: Mapped[np.ndarray | None] = mapped_column(
        Vector(SKETCH_DIMENSION), deferred=True, comment="count sketch: near for tensors that differ little"
    )
    created_at: Mapped[Now]
    touched_at: Mapped[Now] = mapped_column(comment="last time a writer relied on it; prune leaves recent ones")

    chunks: Mapped[list[TensorChunk]] = relationship(
        back_populates="tensor", passive_deletes="all", order_by="TensorChunk.chunk_index"
    )
    weights: Mapped[list[ModelWeight]] = relationship(
        back_populates="tensor", foreign_keys="ModelWeight.tensor_id", viewonly=True
    )


class Chunk(Base):
    """A content-addressed piece of tensors; written only by the store."""

    __tablename__ = "tensor_data"
    __table_args__ = (
        *digest_length("digest", "base_digest"),
        UniqueConstraint("tenant_id", "digest", "depth"),
        # A base is always shallower than what leans on it, so no cycle of deltas can exist.
        ForeignKeyConstraint(
            ["tenant_id", "base_digest", "base_depth"],
            ["arc_halo.tensor_data.tenant_id", "arc_halo.tensor_data.digest", "arc_halo.tensor_data.depth"],
            onupdate="CASCADE",  # a base that is given another depth takes what leans on it along
        ),
        CheckConstraint("(base_digest IS NULL) = (base_depth IS NULL)", name="base_whole"),
        CheckConstraint("base_depth BETWEEN 0 AND 7", name="base_depth_bound"),
        CheckConstraint("raw_nbytes > 0", name="raw_nbytes_positive"),
        CheckConstraint("(payload IS NULL) <> (blob_location IS NULL)", name="payload_or_blob"),
        CheckConstraint("payload IS NULL OR octet_length(payload) = stored_nbytes", name="payload_length"),
        *not_negative("stored_nbytes"),
        Index(
            "ix_tensor_data_base_digest", "tenant_id", "base_digest", postgresql_where=text("base_digest IS NOT NULL")
        ),
        Index("ix_tensor_data_touched_at", "touched_at"),
        Index(
            "uq_tensor_data_blob_location",
            "blob_location",
            unique=True,
            postgresql_where=text("blob_location IS NOT NULL"),
        ),
    )

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    digest: Mapped[Digest] = mapped_column(primary_key=True, comment="BLAKE3-256 of the raw bytes")
    raw_nbytes: Mapped[Int]
    stored_nbytes: Mapped[Int]
    codec: Mapped[str] = mapped_column(comment="id of the codec that made the payload")
    dtype: Mapped[str] = mapped_column(
        comment="element type it was encoded as; tensors of another type may share the bytes"
    )
    payload_checksum: Mapped[int] = mapped_column(comment="of the stored bytes, checked before they are decoded")
    base_digest: Mapped[Digest | None] = mapped_column(comment="the chunk this one is a delta of")
    base_depth: Mapped[SmallInt | None]
    depth: Mapped[int] = mapped_column(
        SmallInteger, Computed("(COALESCE((base_depth + 1), 0))::smallint", persisted=True)
    )
    payload: Mapped[bytes | None] = mapped_column(deferred=True, deferred_raiseload=True)
    blob_location: Mapped[str | None] = mapped_column(comment="key of its object, below the URL of the blob store")
    created_at: Mapped[Now]
    touched_at: Mapped[Now] = mapped_column(comment="last time a writer relied on it; prune leaves recent ones")


# Compressed already: TOAST would spend time to find out that it cannot be made smaller.
declare(Base.metadata, "ALTER TABLE arc_halo.tensor_data ALTER COLUMN payload SET STORAGE EXTERNAL")


class TensorChunk(Base):
    """Which chunk stands at which place of a tensor."""

    __tablename__ = "tensor_chunks"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "tensor_id"],
            ["arc_halo.tensor_metadata.tenant_id", "arc_halo.tensor_metadata.id"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(
            ["tenant_id", "digest"], ["arc_halo.tensor_data.tenant_id", "arc_halo.tensor_data.digest"]
        ),
        Index("ix_tensor_chunks_digest", "tenant_id", "digest"),
        *not_negative("chunk_index", "first_row", "raw_offset"),
        CheckConstraint("raw_nbytes > 0", name="raw_nbytes_positive"),
    )

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    tensor_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    chunk_index: Mapped[Int] = mapped_column(primary_key=True)
    digest: Mapped[Digest]
    first_row: Mapped[int] = mapped_column(comment="first row, all axes but the last flattened, that it touches")
    raw_offset: Mapped[int] = mapped_column(comment="its first byte, from the tensor's start")
    raw_nbytes: Mapped[Int]

    tensor: Mapped[Tensor] = relationship(
        back_populates="chunks",
        primaryjoin="and_(TensorChunk.tenant_id == Tensor.tenant_id, foreign(TensorChunk.tensor_id) == Tensor.id)",
    )
    data: Mapped[Chunk] = relationship(
        viewonly=True,
        primaryjoin="and_(TensorChunk.tenant_id == Chunk.tenant_id, foreign(TensorChunk.digest) == Chunk.digest)",
    )


class ModelWeight(Timestamped, Base):
    """A model's use of a tensor under a name."""

    __tablename__ = "model_weights"
    __table_args__ = (
        UniqueConstraint("model_id", "name"),
        UniqueConstraint("model_id", "id"),
        # Layer and tie are of the same model, whatever is written.
        ForeignKeyConstraint(
            ["model_id", "layer_id"],
            ["arc_halo.transformer_layers.model_id", "arc_halo.transformer_layers.id"],
            ondelete="SET NULL (layer_id)",
        ),
        ForeignKeyConstraint(
            ["model_id", "tied_to_id"],
            ["arc_halo.model_weights.model_id", "arc_halo.model_weights.id"],
            ondelete="SET NULL (tied_to_id)",
        ),
        Index(None, "model_id", "layer_id"),
        Index(None, "model_id", "tied_to_id"),
        closed_set("category", "weight", "bias", "embedding", "norm", "buffer", "other"),
        CheckConstraint("tied_to_id <> id", name="not_tied_to_itself"),
        *not_negative("position"),
    )

    id: Mapped[Key]
    model_id: Mapped[uuid.UUID] = mapped_column(reference("models"))
    layer_id: Mapped[uuid.UUID | None]
    tensor_id: Mapped[uuid.UUID] = mapped_column(reference("tensor_metadata", ondelete="RESTRICT"), index=True)
    gradient_tensor_id: Mapped[uuid.UUID | None] = mapped_column(
        reference("tensor_metadata", ondelete="RESTRICT"), index=True
    )
    tied_to_id: Mapped[uuid.UUID | None] = mapped_column(
        comment="the weight it is one with; equal bytes alone do not make a tie"
    )
    position: Mapped[Int] = mapped_column(comment="order in the imported files")
    name: Mapped[str]
    category: Mapped[str]
    is_trainable: Mapped[bool] = mapped_column(default=True, server_default=text("true"))

    model: Mapped[Model] = relationship(back_populates="weights")
    layer: Mapped[TransformerLayer | None] = relationship(
        back_populates="weights", primaryjoin="foreign(ModelWeight.layer_id) == TransformerLayer.id"
    )
    tensor: Mapped[Tensor] = relationship(foreign_keys=tensor_id, lazy="joined", innerjoin=True)
    gradient: Mapped[Tensor | None] = relationship(foreign_keys=gradient_tensor_id)
    tied_to: Mapped[ModelWeight | None] = relationship(
        remote_side="ModelWeight.id", primaryjoin="foreign(ModelWeight.tied_to_id) == ModelWeight.id"
    )

    @hybrid_property
    def is_parameter(self) -> bool:
        """Counts as parameters: no buffer, and not tied to another weight."""
        return self.tied_to_id is None and self.category != "buffer"

    @is_parameter.inplace.expression
    @classmethod
    def _is_parameter_expression(cls) -> ColumnElement[bool]:
        return and_(cls.tied_to_id.is_(None), cls.category != "buffer")


_SEARCHED = f"kind IN ({', '.join(repr(kind) for kind in ACROSS_OWNERS_KINDS)})"


def _nearest_index(kind: str, dimension: int) -> Index:
    """An HNSW index over the embeddings of one dimension, for kinds that are searched across owners."""
    expression, operators = {
        "vector": (f"(vector::public.vector({dimension}))", "public.vector_cosine_ops"),
        "halfvec": (f"(vector::public.halfvec({dimension}))", "public.halfvec_cosine_ops"),
        "bit": (f"((public.binary_quantize(vector))::bit({dimension}))", "public.bit_hamming_ops"),
    }[kind]
    return Index(
        f"ix_embeddings_{kind}_{dimension}",
        text(f"({expression}) {operators}"),
        postgresql_using="hnsw",
        postgresql_where=text(f"dimension = {dimension} AND {_SEARCHED}"),
    )


VECTOR_DIMENSIONS = (384, 768, 1024, 1536)
HALFVEC_DIMENSIONS = (2048, 3072)
BIT_DIMENSIONS = (4096,)


class Embedding(Base):
    """A vector with an owner and a label: token rows of weights, texts, runs, whole tensors."""

    __tablename__ = "embeddings"
    __table_args__ = (
        closed_set("kind", *WEIGHT_KINDS, *ACROSS_OWNERS_KINDS),
        # Rows of weights belong to the tensor, so models that share it share them, and they go with it.
        CheckConstraint(
            f"(kind IN ({', '.join(map(repr, WEIGHT_KINDS))})) = (tensor_id IS NOT NULL)", name="weight_kinds_of_tensor"
        ),
        CheckConstraint("tensor_id = owner_id", name="tensor_is_owner"),
        CheckConstraint("dimension = public.vector_dims(vector)", name="dimension"),
        *not_negative("row_index"),
        *(_nearest_index("vector", dimension) for dimension in VECTOR_DIMENSIONS),
        *(_nearest_index("halfvec", dimension) for dimension in HALFVEC_DIMENSIONS),
        *(_nearest_index("bit", dimension) for dimension in BIT_DIMENSIONS),
        # serves the foreign key and the search for a token's row
        Index("ix_embeddings_tensor_id_label", "tensor_id", "label"),
        {"postgresql_partition_by": "LIST (kind)"},
    )

    tenant_id: Mapped[TenantId] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    row_index: Mapped[int] = mapped_column(primary_key=True, comment="row of the owner's matrix: the token id")
    tensor_id: Mapped[uuid.UUID | None] = mapped_column(reference("tensor_metadata"))
    label: Mapped[str | None] = mapped_column(comment="text of the token, or what the vector stands for")
    dimension: Mapped[Int]
    vector: Mapped[np.ndarray] = mapped_column(Vector)
    created_at: Mapped[Now]

    tensor: Mapped[Tensor | None] = relationship()


declare_partitions(
    Embedding.__table__,
    "CREATE TABLE arc_halo.embeddings_weights PARTITION OF arc_halo.embeddings"
    " FOR VALUES IN ('token', 'position', 'segment')",
    *(
        f"CREATE TABLE arc_halo.embeddings_{kind} PARTITION OF arc_halo.embeddings FOR VALUES IN ('{kind}')"
        for kind in ACROSS_OWNERS_KINDS
    ),
)

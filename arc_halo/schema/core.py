"""Core: models, their layers and heads, aliases, files and lineage."""

# ruff: noqa: TC003  (SQLAlchemy evaluates the annotations of mapped classes)

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKeyConstraint,
    Index,
    UniqueConstraint,
    func,
    select,
    text,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column, object_session, relationship

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
from arc_halo.schema.html import ModelHtml

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, SQLColumnExpression
    from sqlalchemy.orm import InstrumentedAttribute

    from arc_halo.schema.tensors import ModelWeight

EMPTY_OBJECT = text("'{}'::jsonb")


class Model(ModelHtml, Timestamped, Tenanted, Base):
    """A transformer model at one version: the root of its layers, weights, runs and caches."""

    __tablename__ = "models"
    __table_args__ = (
        UniqueConstraint("tenant_id", "name", "version"),
        UniqueConstraint("id", "name"),  # what an alias refers to
        Index(None, "tenant_id", "weights_digest"),  # whether cached content still belongs to a model
        closed_set("status", "initialized", "training", "trained", "deployed", "archived"),
        *digest_length("weights_digest", "config_digest", "tokenizer_digest"),
    )

    id: Mapped[Key]
    name: Mapped[str]
    version: Mapped[str]
    model_type: Mapped[str] = mapped_column(comment="architecture as config.json names it, e.g. bert, llama")
    architecture_config: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict, server_default=EMPTY_OBJECT)
    status: Mapped[str] = mapped_column(default="initialized", server_default="initialized")
    weights_digest: Mapped[Digest | None] = mapped_column(
        comment="Merkle root over (name, dtype, shape, digest) of all weights; null while any of them is newer"
    )
    config_digest: Mapped[Digest | None]
    tokenizer_digest: Mapped[Digest | None]

    layers: Mapped[list[TransformerLayer]] = relationship(
        back_populates="model", passive_deletes="all", order_by="TransformerLayer.position"
    )
    weights: Mapped[list[ModelWeight]] = relationship(
        back_populates="model", passive_deletes="all", order_by="ModelWeight.position"
    )
    files: Mapped[list[ModelFile]] = relationship(
        back_populates="model", passive_deletes="all", order_by="ModelFile.position"
    )
    aliases: Mapped[list[ModelAlias]] = relationship(back_populates="model", passive_deletes="all")

    @hybrid_property
    def parameter_count(self) -> int:
        """Elements of all weights; buffers are not parameters, and tied weights count once."""
        return sum(weight.tensor.element_count for weight in self.weights if weight.is_parameter)

    @parameter_count.inplace.expression
    @classmethod
    def _parameter_count_expression(cls) -> ColumnElement[int]:
        from arc_halo.schema.tensors import ModelWeight, Tensor  # noqa: PLC0415  # tensors refers to models

        return cls._total(Tensor.element_count, ModelWeight.is_parameter)

    @hybrid_property
    def trainable_parameter_count(self) -> int:
        """The part of ``parameter_count`` that training may change."""
        return sum(w.tensor.element_count for w in self.weights if w.is_parameter and w.is_trainable)

    @trainable_parameter_count.inplace.expression
    @classmethod
    def _trainable_parameter_count_expression(cls) -> ColumnElement[int]:
        from arc_halo.schema.tensors import ModelWeight, Tensor  # noqa: PLC0415  # tensors refers to models

        return cls._total(Tensor.element_count, ModelWeight.is_parameter, ModelWeight.is_trainable)

    @hybrid_property
    def nbytes(self) -> int:
        """Bytes of all weights and buffers as they are used, tied weights counted once."""
        return sum(weight.tensor.nbytes for weight in self.weights if weight.tied_to_id is None)

    @nbytes.inplace.expression
    @classmethod
    def _nbytes_expression(cls) -> ColumnElement[int]:
        from arc_halo.schema.tensors import ModelWeight, Tensor  # noqa: PLC0415  # tensors refers to models

        return cls._total(Tensor.nbytes, ModelWeight.tied_to_id.is_(None))

    @hybrid_property
    def stored_nbytes(self) -> int:
        """Bytes of the distinct chunks the weights are made of, as they are stored; other models may share them."""
        session = object_session(self)
        if session is None:
            raise LookupError(f"{self!r} belongs to no session, so its chunks cannot be asked for")
        return session.scalars(select(Model.stored_nbytes).where(Model.id == self.id)).one()

    @stored_nbytes.inplace.expression
    @classmethod
    def _stored_nbytes_expression(cls) -> ColumnElement[int]:
        from arc_halo.schema.tensors import Chunk, ModelWeight, TensorChunk  # noqa: PLC0415  # tensors refers to models

        used = (
            select(TensorChunk.tenant_id, TensorChunk.digest)
            .join(ModelWeight, ModelWeight.tensor_id == TensorChunk.tensor_id)
            .where(ModelWeight.model_id == cls.id)
            .correlate(cls)
        )
        stored = select(func.coalesce(func.sum(Chunk.stored_nbytes), 0).cast(BigInteger))
        return stored.where(tuple_(Chunk.tenant_id, Chunk.digest).in_(used)).correlate(cls).scalar_subquery()

    @classmethod
    def _total(cls, column: InstrumentedAttribute[int], *counted: SQLColumnExpression[bool]) -> ColumnElement[int]:
        from arc_halo.schema.tensors import ModelWeight, Tensor  # noqa: PLC0415  # tensors refers to models

        return (
            select(func.coalesce(func.sum(column), 0).cast(BigInteger))
            .join_from(ModelWeight, Tensor, ModelWeight.tensor_id == Tensor.id)
            .where(ModelWeight.model_id == cls.id, *counted)
            .correlate(cls)
            .scalar_subquery()
        )


class ModelAlias(Timestamped, Tenanted, Base):
    """A movable name for one version of a model, written name@alias."""

    __tablename__ = "model_aliases"
    __table_args__ = (
        UniqueConstraint("tenant_id", "name", "alias"),
        ForeignKeyConstraint(
            ["model_id", "name"],
            ["arc_halo.models.id", "arc_halo.models.name"],
            ondelete="CASCADE",
            onupdate="CASCADE",
        ),
    )

    id: Mapped[Key]
    name: Mapped[str] = mapped_column(comment="the model's name; the foreign key keeps it equal")
    alias: Mapped[str]
    model_id: Mapped[uuid.UUID] = mapped_column(index=True)

    model: Mapped[Model] = relationship(back_populates="aliases")


class ModelFile(Base):
    """A file of an imported model folder: the raw header of weights files, all of any other file."""

    __tablename__ = "model_files"
    __table_args__ = (
        UniqueConstraint("model_id", "path"),
        closed_set("kind", "weights", "index", "config", "tokenizer", "other"),
        *digest_length("digest"),
        *not_negative("position", "nbytes"),
    )

    id: Mapped[Key]
    model_id: Mapped[uuid.UUID] = mapped_column(reference("models"))
    position: Mapped[Int]
    path: Mapped[str] = mapped_column(comment="relative to the folder, with forward slashes")
    kind: Mapped[str]
    nbytes: Mapped[int] = mapped_column(comment="size of the file, tensors included")
    digest: Mapped[Digest] = mapped_column(comment="BLAKE3-256 of content")
    content: Mapped[bytes] = mapped_column(
        deferred=True, comment="the whole file; of a weights file the header, up to the first tensor"
    )
    created_at: Mapped[Now]

    model: Mapped[Model] = relationship(back_populates="files")


class ModelLineage(Base):
    """How a model came from another: child was made from parent."""

    __tablename__ = "model_lineage"
    __table_args__ = (
        UniqueConstraint("child_id", "parent_id", "kind"),
        closed_set("kind", "finetune", "merge", "quantize", "prune", "distill", "copy"),
        CheckConstraint("parent_id <> child_id", name="no_self"),
    )

    id: Mapped[Key]
    parent_id: Mapped[uuid.UUID] = mapped_column(reference("models"), index=True)
    child_id: Mapped[uuid.UUID] = mapped_column(reference("models"))
    kind: Mapped[str]
    recipe: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default=EMPTY_OBJECT)
    created_at: Mapped[Now]

    parent: Mapped[Model] = relationship(foreign_keys=parent_id)
    child: Mapped[Model] = relationship(foreign_keys=child_id)


class TransformerLayer(Base):
    """A node of a model's layer tree: blocks hold attention, feed-forward and normalisation."""

    __tablename__ = "transformer_layers"
    __table_args__ = (
        UniqueConstraint("model_id", "path"),
        UniqueConstraint("model_id", "id"),
        ForeignKeyConstraint(
            ["model_id", "parent_id"],
            ["arc_halo.transformer_layers.model_id", "arc_halo.transformer_layers.id"],
            ondelete="CASCADE",
        ),
        closed_set("layer_type", "block", "embedding", "attention", "feedforward", "normalization", "output", "other"),
        Index("ix_transformer_layers_parent_id", "parent_id"),
        *not_negative("position", "layer_index", "input_dim", "output_dim"),
    )

    id: Mapped[Key]
    model_id: Mapped[uuid.UUID] = mapped_column(reference("models"))
    parent_id: Mapped[uuid.UUID | None]
    position: Mapped[Int] = mapped_column(comment="order in the model, parents before children")
    path: Mapped[str] = mapped_column(comment="common prefix of its weights' names, e.g. encoder.layer.0.attention")
    name: Mapped[str]
    layer_index: Mapped[Int | None] = mapped_column(comment="number of the block it is or stands in")
    layer_type: Mapped[str]
    input_dim: Mapped[int | None]
    output_dim: Mapped[int | None]
    config: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default=EMPTY_OBJECT)
    created_at: Mapped[Now]

    model: Mapped[Model] = relationship(back_populates="layers", foreign_keys=model_id)
    parent: Mapped[TransformerLayer | None] = relationship(
        back_populates="children",
        remote_side="TransformerLayer.id",
        primaryjoin="foreign(TransformerLayer.parent_id) == TransformerLayer.id",
    )
    children: Mapped[list[TransformerLayer]] = relationship(
        back_populates="parent",
        primaryjoin="TransformerLayer.id == foreign(TransformerLayer.parent_id)",
        passive_deletes="all",
        order_by="TransformerLayer.position",
    )
    heads: Mapped[list[AttentionHead]] = relationship(
        back_populates="layer", passive_deletes="all", order_by="AttentionHead.head_index"
    )
    weights: Mapped[list[ModelWeight]] = relationship(
        back_populates="layer",
        primaryjoin="TransformerLayer.id == foreign(ModelWeight.layer_id)",
        passive_deletes="all",
        order_by="ModelWeight.position",
    )


def _of_head(projection: str) -> str:
    return f"{projection}_axis IN (0, 1) AND {projection}_start >= 0 AND {projection}_stop > {projection}_start"


class AttentionHead(Base):
    """One attention head and the part of each projection that is its own."""

    __tablename__ = "attention_heads"
    __table_args__ = (
        UniqueConstraint("layer_id", "head_index"),
        *not_negative("head_index", "kv_group"),
        CheckConstraint("head_dim > 0", name="head_dim_positive"),
        *(CheckConstraint(_of_head(p), name=f"{p}_range") for p in ("query", "key", "value", "output")),
    )

    id: Mapped[Key]
    layer_id: Mapped[uuid.UUID] = mapped_column(reference("transformer_layers"))
    head_index: Mapped[Int]
    head_dim: Mapped[Int]
    kv_group: Mapped[Int] = mapped_column(comment="heads of one group share keys and values (GQA, MQA)")
    query_weight_id: Mapped[uuid.UUID | None] = mapped_column(
        reference("model_weights", ondelete="SET NULL"), index=True
    )
    query_axis: Mapped[SmallInt | None] = mapped_column(comment="0: rows start..stop are this head's; 1: columns")
    query_start: Mapped[int | None]
    query_stop: Mapped[int | None]
    key_weight_id: Mapped[uuid.UUID | None] = mapped_column(reference("model_weights", ondelete="SET NULL"), index=True)
    key_axis: Mapped[SmallInt | None]
    key_start: Mapped[int | None]
    key_stop: Mapped[int | None]
    value_weight_id: Mapped[uuid.UUID | None] = mapped_column(
        reference("model_weights", ondelete="SET NULL"), index=True
    )
    value_axis: Mapped[SmallInt | None]
    value_start: Mapped[int | None]
    value_stop: Mapped[int | None]
    output_weight_id: Mapped[uuid.UUID | None] = mapped_column(
        reference("model_weights", ondelete="SET NULL"), index=True
    )
    output_axis: Mapped[SmallInt | None]
    output_start: Mapped[int | None]
    output_stop: Mapped[int | None]

    layer: Mapped[TransformerLayer] = relationship(back_populates="heads")
    query_weight: Mapped[ModelWeight | None] = relationship(foreign_keys=query_weight_id)
    key_weight: Mapped[ModelWeight | None] = relationship(foreign_keys=key_weight_id)
    value_weight: Mapped[ModelWeight | None] = relationship(foreign_keys=value_weight_id)
    output_weight: Mapped[ModelWeight | None] = relationship(foreign_keys=output_weight_id)

"""Checkpoints: states a run can go back to, their manifests, optimizer state and recomputation of activations."""

# ruff: noqa: TC001, TC003  (SQLAlchemy evaluates the annotations of mapped classes)

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from arc_halo.schema.base import Base
from arc_halo.schema.columns import (
    Digest,
    Int,
    Key,
    Now,
    Timestamped,
    closed_set,
    digest_length,
    not_negative,
    reference,
)
from arc_halo.schema.core import EMPTY_OBJECT, TransformerLayer
from arc_halo.schema.tensors import ModelWeight, Tensor
from arc_halo.schema.training import TrainingAttempt, TrainingSession


class ModelCheckpoint(Base):
    """A state a run can go back to: weights, optimizer, random state and data position of one step."""

    __tablename__ = "model_checkpoints"
    __table_args__ = (
        ForeignKeyConstraint(
            ["training_session_id", "attempt_id"],
            ["arc_halo.training_attempts.training_session_id", "arc_halo.training_attempts.id"],
            ondelete="CASCADE",
        ),
        closed_set("checkpoint_type", "full", "weights", "optimizer"),
        closed_set("status", "pending", "published", "failed"),
        CheckConstraint("(status = 'published') = (published_at IS NOT NULL)", name="published_has_time"),
        CheckConstraint("status <> 'published' OR manifest_digest IS NOT NULL", name="published_has_manifest"),
        CheckConstraint("NOT is_best OR status = 'published'", name="best_is_published"),
        CheckConstraint("world_size > 0", name="world_size_positive"),
        closed_set("compression", "none", "fast", "balanced", "dense"),
        *digest_length("manifest_digest"),
        *not_negative("step", "epoch", "nbytes"),
        Index(None, "training_session_id", "attempt_id"),
        # The ranks of one attempt that save a step together find the same row.
        Index(
            "ix_model_checkpoints_pending",
            "attempt_id",
            "step",
            "checkpoint_type",
            unique=True,
            postgresql_where=text("status = 'pending'"),
        ),
        # Of two writers of one step the second learns that it came late.
        Index(
            "ix_model_checkpoints_published",
            "attempt_id",
            "step",
            "checkpoint_type",
            unique=True,
            postgresql_where=text("status = 'published'"),
        ),
        Index(
            "ix_model_checkpoints_best",
            "training_session_id",
            "checkpoint_type",
            unique=True,
            postgresql_where=text("is_best"),
        ),
    )

    id: Mapped[Key]
    training_session_id: Mapped[uuid.UUID] = mapped_column(reference("training_sessions"))
    attempt_id: Mapped[uuid.UUID]
    step: Mapped[int]
    epoch: Mapped[float | None]
    checkpoint_type: Mapped[str] = mapped_column(default="full", server_default="full")
    status: Mapped[str] = mapped_column(default="pending", server_default="pending")
    is_best: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    metrics: Mapped[dict[str, Any]] = mapped_column(
        default=dict, server_default=EMPTY_OBJECT, comment="last values at this step"
    )
    manifest_digest: Mapped[Digest | None] = mapped_column(comment="Merkle root over tensors and optimizer state")
    nbytes: Mapped[int | None] = mapped_column(comment="of all its tensors, before they are shared and compressed")
    rng_state: Mapped[dict[str, Any] | None] = mapped_column(comment="of each rank; large states are tensors")
    data_loader_state: Mapped[dict[str, Any] | None] = mapped_column(comment="where each rank stands in the data")
    scheduler_state: Mapped[dict[str, Any] | None]
    scaler_state: Mapped[dict[str, Any] | None]
    optimizer_groups: Mapped[list[Any] | None] = mapped_column(
        JSONB(none_as_null=True), comment="parameter groups: hyperparameters, and the parameters' names in order"
    )
    extra_state: Mapped[dict[str, Any] | None] = mapped_column(comment="what else the caller keeps; arrays are tensors")
    world_size: Mapped[Int] = mapped_column(default=1, server_default=text("1"), comment="ranks that wrote it")
    compression: Mapped[str] = mapped_column(default="balanced", server_default="balanced", comment="its policy")
    is_pinned: Mapped[bool] = mapped_column(
        default=False, server_default=text("false"), comment="retention leaves it, whatever its policy"
    )
    lsn: Mapped[str | None] = mapped_column(comment="WAL position after its commit: a branch may start there")
    created_at: Mapped[Now]
    published_at: Mapped[dt.datetime | None]

    training_session: Mapped[TrainingSession] = relationship(
        back_populates="checkpoints", foreign_keys=training_session_id
    )
    attempt: Mapped[TrainingAttempt] = relationship(
        primaryjoin="foreign(ModelCheckpoint.attempt_id) == TrainingAttempt.id"
    )
    tensors: Mapped[list[CheckpointTensor]] = relationship(
        back_populates="checkpoint", passive_deletes="all", order_by="CheckpointTensor.position"
    )
    optimizer_states: Mapped[list[OptimizerState]] = relationship(
        back_populates="checkpoint",
        passive_deletes="all",
        order_by="OptimizerState.parameter_name, OptimizerState.state_name, OptimizerState.shard_index",
    )
    ranks: Mapped[list[CheckpointRank]] = relationship(
        back_populates="checkpoint", passive_deletes="all", order_by="CheckpointRank.rank"
    )


class CheckpointRank(Base):
    """What one rank has brought to a checkpoint; it is published when all of them have, and takes their states over."""

    __tablename__ = "checkpoint_ranks"
    __table_args__ = (*not_negative("rank", "nbytes"),)

    checkpoint_id: Mapped[uuid.UUID] = mapped_column(reference("model_checkpoints"), primary_key=True)
    rank: Mapped[Int] = mapped_column(primary_key=True)
    nbytes: Mapped[int] = mapped_column(comment="of its tensors, before they are shared and compressed")
    rng_state: Mapped[dict[str, Any] | None]
    data_loader_state: Mapped[dict[str, Any] | None]
    optimizer_groups: Mapped[list[Any] | None] = mapped_column(
        JSONB(none_as_null=True), comment="as the checkpoint's, of this rank's parameters"
    )
    written_at: Mapped[Now]

    checkpoint: Mapped[ModelCheckpoint] = relationship(back_populates="ranks")


def shard_checks() -> tuple[CheckConstraint, ...]:
    """What holds of the columns of `Sharded`; constraints of their own for each table."""
    return (
        CheckConstraint("num_nonnulls(shard_offsets, full_shape) IN (0, 2)", name="shard_whole"),
        CheckConstraint("cardinality(shard_offsets) = cardinality(full_shape)", name="shard_dimensions"),
        CheckConstraint("shard_index = 0 OR shard_offsets IS NOT NULL", name="shard_has_offsets"),
        CheckConstraint("shard_index >= 0", name="shard_index_not_negative"),
    )


class Sharded:
    """Whole, or one part of a tensor that several ranks hold parts of."""

    shard_index: Mapped[Int] = mapped_column(primary_key=True, default=0, server_default=text("0"))
    shard_offsets: Mapped[list[int] | None] = mapped_column(
        ARRAY(BigInteger), comment="where the part begins on each axis of the whole; null: it is the whole"
    )
    full_shape: Mapped[list[int] | None] = mapped_column(ARRAY(BigInteger), comment="of the whole that it is a part of")


class CheckpointTensor(Sharded, Base):
    """A tensor of a checkpoint under its name: the checkpoint's manifest."""

    __tablename__ = "checkpoint_tensors"
    __table_args__ = (
        *shard_checks(),
        closed_set("component", "weights", "gradients", "rng", "other"),
        *not_negative("position"),
    )

    checkpoint_id: Mapped[uuid.UUID] = mapped_column(reference("model_checkpoints"), primary_key=True)
    component: Mapped[str] = mapped_column(primary_key=True, default="weights", server_default="weights")
    name: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[Int]
    tensor_id: Mapped[uuid.UUID] = mapped_column(reference("tensor_metadata", ondelete="RESTRICT"), index=True)
    weight_id: Mapped[uuid.UUID | None] = mapped_column(
        reference("model_weights", ondelete="SET NULL"), index=True, comment="the model's weight it is a state of"
    )

    checkpoint: Mapped[ModelCheckpoint] = relationship(back_populates="tensors")
    tensor: Mapped[Tensor] = relationship()
    weight: Mapped[ModelWeight | None] = relationship()


class OptimizerState(Sharded, Base):
    """What an optimizer remembers of one parameter: a tensor such as exp_avg, or a number."""

    __tablename__ = "optimizer_state"
    __table_args__ = (
        *shard_checks(),
        CheckConstraint("scalar_dtype IS NULL OR scalar_value IS NOT NULL", name="scalar_dtype_of_scalar"),
        CheckConstraint("num_nonnulls(tensor_id, scalar_value) = 1", name="tensor_or_scalar"),
        *not_negative("group_index", "step_count"),
    )

    checkpoint_id: Mapped[uuid.UUID] = mapped_column(reference("model_checkpoints"), primary_key=True)
    parameter_name: Mapped[str] = mapped_column(primary_key=True)
    state_name: Mapped[str] = mapped_column(primary_key=True, comment="exp_avg, exp_avg_sq, momentum_buffer, step, ...")
    tensor_id: Mapped[uuid.UUID | None] = mapped_column(reference("tensor_metadata", ondelete="RESTRICT"), index=True)
    scalar_value: Mapped[float | None]
    scalar_dtype: Mapped[str | None] = mapped_column(
        comment="of a tensor without axes, else int or bool; null: a plain float"
    )
    step_count: Mapped[int | None] = mapped_column(comment="updates of the parameter so far")
    group_index: Mapped[Int] = mapped_column(default=0, server_default=text("0"), comment="parameter group")
    hyperparameters: Mapped[dict[str, Any]] = mapped_column(
        default=dict, server_default=EMPTY_OBJECT, comment="learning rate, betas, ...; in the first row of each group"
    )

    checkpoint: Mapped[ModelCheckpoint] = relationship(back_populates="optimizer_states")
    tensor: Mapped[Tensor | None] = relationship()


class GradientCheckpoint(Timestamped, Base):
    """How a layer's activations are kept for the backward pass, and what that was measured to cost."""

    __tablename__ = "gradient_checkpoints"
    __table_args__ = (
        UniqueConstraint("training_session_id", "layer_id"),
        closed_set("strategy", "none", "full", "selective", "offload"),
        *not_negative("recompute_seconds", "activation_nbytes", "kept_nbytes", "peak_memory_nbytes"),
    )

    id: Mapped[Key]
    training_session_id: Mapped[uuid.UUID] = mapped_column(reference("training_sessions"))
    layer_id: Mapped[uuid.UUID] = mapped_column(reference("transformer_layers"), index=True)
    strategy: Mapped[str] = mapped_column(default="none", server_default="none")
    recompute_seconds: Mapped[float | None] = mapped_column(comment="forward time spent again in the backward pass")
    activation_nbytes: Mapped[int | None] = mapped_column(comment="what the layer keeps without checkpointing")
    kept_nbytes: Mapped[int | None] = mapped_column(comment="what it keeps under this strategy")
    peak_memory_nbytes: Mapped[int | None]
    measured_at: Mapped[dt.datetime | None] = mapped_column(comment="null: the figures are estimates")

    training_session: Mapped[TrainingSession] = relationship()
    layer: Mapped[TransformerLayer] = relationship()

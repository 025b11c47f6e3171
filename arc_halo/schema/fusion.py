"""Fusion: reactors that run several models as one, their operations, interaction graph, state and metrics."""

# ruff: noqa: TC002, TC003  (SQLAlchemy evaluates the annotations of mapped classes)

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from arc_halo.autogenerate import declare_partitions
from arc_halo.schema.base import Base
from arc_halo.schema.columns import (
    Digest,
    Int,
    Key,
    Now,
    Tenanted,
    Timestamped,
    closed_set,
    digest_length,
    not_negative,
    reference,
)
from arc_halo.schema.core import EMPTY_OBJECT, Model
from arc_halo.schema.types import Vector

MEMBER_ROLES = ("primary", "secondary", "validator", "router", "judge", "synthesizer", "drafter")


def _finite(column: str) -> CheckConstraint:
    """One NaN or infinity would make means of all that."""
    return CheckConstraint(f"abs({column}) < 'Infinity'::double precision", name=f"{column}_finite")


class Reactor(Timestamped, Tenanted, Base):
    """Several models run as one by a strategy."""

    __tablename__ = "cognitive_fusion_reactors"
    __table_args__ = (
        UniqueConstraint("tenant_id", "name"),
        # No closed set: strategies come by entry point, and a name is all the database can check.
        CheckConstraint("strategy ~ '^[a-z][a-z0-9_]*$'", name="strategy_is_name"),
        closed_set("status", "draft", "active", "paused", "retired"),
    )

    id: Mapped[Key]
    name: Mapped[str]
    strategy: Mapped[str] = mapped_column(comment="ensemble, cascade, parallel, hierarchical, ...")
    status: Mapped[str] = mapped_column(default="draft", server_default="draft")
    config: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default=EMPTY_OBJECT)
    graph_version: Mapped[int] = mapped_column(
        default=0, server_default=text("0"), comment="counts changes of the interaction graph; a trigger writes it"
    )

    members: Mapped[list[ReactorModel]] = relationship(
        back_populates="reactor", passive_deletes="all", order_by="ReactorModel.priority, ReactorModel.name"
    )
    interactions: Mapped[list[ModelInteraction]] = relationship(
        primaryjoin="Reactor.id == foreign(ModelInteraction.reactor_id)", viewonly=True
    )
    states: Mapped[list[CognitiveState]] = relationship(
        back_populates="reactor", passive_deletes="all", order_by="CognitiveState.version"
    )


class ReactorModel(Timestamped, Base):
    """A member of a reactor: a model at its exact version, or an endpoint, in a role."""

    __tablename__ = "reactor_models"
    __table_args__ = (
        UniqueConstraint("reactor_id", "name"),
        UniqueConstraint("reactor_id", "id"),
        closed_set("role", *MEMBER_ROLES),
        CheckConstraint("num_nonnulls(model_id, endpoint) > 0", name="model_or_endpoint"),
        # NaN is greater than infinity here, so this refuses both.
        CheckConstraint("weight >= 0 AND weight < 'Infinity'::double precision", name="weight_finite"),
        *not_negative("priority"),
    )

    id: Mapped[Key]
    reactor_id: Mapped[uuid.UUID] = mapped_column(reference("cognitive_fusion_reactors"))
    # Answers stay accounted for: a model that is a member cannot be deleted, only archived.
    model_id: Mapped[uuid.UUID | None] = mapped_column(reference("models", ondelete="RESTRICT"), index=True)
    name: Mapped[str]
    role: Mapped[str] = mapped_column(default="primary", server_default="primary")
    weight: Mapped[float] = mapped_column(default=1.0, server_default=text("1"))
    priority: Mapped[Int] = mapped_column(default=0, server_default=text("0"), comment="smaller goes first")
    endpoint: Mapped[str | None] = mapped_column(
        comment="name of a configured endpoint or registered callable; never opened as it stands here"
    )
    is_enabled: Mapped[bool] = mapped_column(default=True, server_default=text("true"))
    config: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default=EMPTY_OBJECT)

    reactor: Mapped[Reactor] = relationship(back_populates="members")
    model: Mapped[Model | None] = relationship()


_MEMBER_OF_REACTOR = ["arc_halo.reactor_models.reactor_id", "arc_halo.reactor_models.id"]
_STATE_OF_REACTOR = ["arc_halo.cognitive_state.reactor_id", "arc_halo.cognitive_state.version"]


class ModelInteraction(Timestamped, Base):
    """An edge between two members of a reactor; feeds_into has no cycles."""

    __tablename__ = "model_interaction_graph"
    __table_args__ = (
        UniqueConstraint(
            "reactor_id", "source_id", "target_id", "interaction_type", name="uq_model_interaction_graph_edge"
        ),
        ForeignKeyConstraint(["reactor_id", "source_id"], _MEMBER_OF_REACTOR, ondelete="CASCADE"),
        ForeignKeyConstraint(["reactor_id", "target_id"], _MEMBER_OF_REACTOR, ondelete="CASCADE"),
        Index(None, "reactor_id", "target_id"),
        closed_set("interaction_type", "feeds_into", "validates", "augments"),
        CheckConstraint("source_id <> target_id", name="no_self"),
    )

    id: Mapped[Key]
    reactor_id: Mapped[uuid.UUID]
    source_id: Mapped[uuid.UUID]
    target_id: Mapped[uuid.UUID]
    interaction_type: Mapped[str]
    config: Mapped[dict[str, Any]] = mapped_column(
        default=dict, server_default=EMPTY_OBJECT, comment="what flows along the edge, and how"
    )

    source: Mapped[ReactorModel] = relationship(primaryjoin="foreign(ModelInteraction.source_id) == ReactorModel.id")
    target: Mapped[ReactorModel] = relationship(primaryjoin="foreign(ModelInteraction.target_id) == ReactorModel.id")


class CognitiveState(Base):
    """One version of what a reactor has in mind; versions are appended, never changed."""

    __tablename__ = "cognitive_state"
    __table_args__ = (
        # A version is written once: of two writers that continue the same one, the second is refused here.
        UniqueConstraint("reactor_id", "version"),
        ForeignKeyConstraint(["reactor_id", "parent_version"], _STATE_OF_REACTOR),
        Index(None, "reactor_id", "parent_version"),
        CheckConstraint("parent_version < version", name="parent_is_older"),
        *not_negative("version"),
    )

    id: Mapped[Key]
    reactor_id: Mapped[uuid.UUID] = mapped_column(reference("cognitive_fusion_reactors"))
    version: Mapped[int]
    parent_version: Mapped[int | None]
    context: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default=EMPTY_OBJECT)
    memory: Mapped[dict[str, Any]] = mapped_column(
        default=dict, server_default=EMPTY_OBJECT, comment="working memory; what is recalled by likeness is a row each"
    )
    attention_focus: Mapped[dict[str, Any]] = mapped_column(
        default=dict, server_default=EMPTY_OBJECT, comment="weights over memories and members"
    )
    goals: Mapped[list[Any]] = mapped_column(
        JSONB, default=list, server_default=text("'[]'::jsonb"), comment="goals and how far each is"
    )
    created_at: Mapped[Now]

    reactor: Mapped[Reactor] = relationship(back_populates="states")
    memories: Mapped[list[CognitiveMemory]] = relationship(
        back_populates="state", passive_deletes="all", order_by="CognitiveMemory.id"
    )


class CognitiveMemory(Base):
    """Something a reactor remembers since a version of its state, with a vector to recall it by."""

    __tablename__ = "cognitive_memories"
    __table_args__ = (
        ForeignKeyConstraint(["reactor_id", "state_version"], _STATE_OF_REACTOR, ondelete="CASCADE"),
        # Recall is exact within one reactor, as a search within one owner of embeddings is.
        Index(None, "reactor_id", "state_version"),
        CheckConstraint("dimension = public.vector_dims(vector)", name="dimension"),
        CheckConstraint("(vector IS NULL) = (dimension IS NULL)", name="dimension_of_vector"),
        CheckConstraint("importance >= 0 AND importance < 'Infinity'::double precision", name="importance_finite"),
    )

    id: Mapped[Key]
    reactor_id: Mapped[uuid.UUID]
    state_version: Mapped[int]
    content: Mapped[str]
    importance: Mapped[float] = mapped_column(default=1.0, server_default=text("1"))
    dimension: Mapped[Int | None]
    vector: Mapped[np.ndarray | None] = mapped_column(Vector, deferred=True)
    created_at: Mapped[Now]

    state: Mapped[CognitiveState] = relationship(back_populates="memories")


class FusionOperation(Tenanted, Base):
    """One question to a reactor and its joint answer, written when it is over."""

    __tablename__ = "fusion_operations"
    __table_args__ = (
        ForeignKeyConstraint(["reactor_id", "state_version"], _STATE_OF_REACTOR),
        Index(None, "reactor_id", "started_at"),
        Index(None, "reactor_id", "state_version"),
        closed_set("status", "completed", "failed", "timed_out", "cancelled"),
        # What was asked before is found by likeness, exactly and within one reactor, as memories are.
        CheckConstraint("input_dimension = public.vector_dims(input_vector)", name="input_dimension"),
        CheckConstraint("(input_vector IS NULL) = (input_dimension IS NULL)", name="dimension_of_input_vector"),
        CheckConstraint("status <> 'completed' OR output IS NOT NULL", name="completed_has_output"),
        CheckConstraint("replay_of <> id", name="no_replay_of_itself"),
        _finite("quality"),
        *not_negative("execution_seconds"),
    )

    id: Mapped[Key]
    reactor_id: Mapped[uuid.UUID] = mapped_column(reference("cognitive_fusion_reactors"))
    status: Mapped[str]
    strategy: Mapped[str] = mapped_column(comment="of the reactor at that time, as the next two")
    config: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default=EMPTY_OBJECT)
    budget: Mapped[dict[str, Any] | None] = mapped_column(comment="that it was given in the place of the config's")
    graph_version: Mapped[int | None]
    state_version: Mapped[int | None] = mapped_column(comment="version of cognitive_state it started from")
    seed: Mapped[int | None]
    input: Mapped[dict[str, Any]]
    output: Mapped[dict[str, Any] | None]
    trace: Mapped[list[Any]] = mapped_column(
        JSONB, default=list, server_default=text("'[]'::jsonb"), comment="edges walked and decisions taken, in order"
    )
    score: Mapped[float | None] = mapped_column(comment="how sure the strategy was")
    quality: Mapped[float | None] = mapped_column(comment="of the output, by a reference, a scorer or somebody's word")
    error: Mapped[str | None]
    # The first may be deleted; what it was run for again stays.
    replay_of: Mapped[uuid.UUID | None] = mapped_column(reference("fusion_operations", ondelete="SET NULL"), index=True)
    input_dimension: Mapped[Int | None]
    input_vector: Mapped[np.ndarray | None] = mapped_column(Vector, deferred=True)
    started_at: Mapped[Now]
    execution_seconds: Mapped[float]

    reactor: Mapped[Reactor] = relationship(foreign_keys=reactor_id)
    members: Mapped[list[FusionOperationMember]] = relationship(
        back_populates="operation", passive_deletes="all", order_by="FusionOperationMember.position"
    )


class FusionOperationMember(Base):
    """What one member was asked in an operation and what it answered."""

    __tablename__ = "fusion_operation_members"
    __table_args__ = (
        closed_set("role", *MEMBER_ROLES),
        closed_set("status", "answered", "failed", "timed_out", "cancelled", "skipped"),
        *digest_length("weights_digest"),
        *not_negative(
            "position",
            "latency_seconds",
            "prompt_token_count",
            "generated_token_count",
            "cached_token_count",
            "cost",
            "began_seconds",
        ),
        CheckConstraint("propensity > 0 AND propensity <= 1", name="propensity_is_probability"),
        CheckConstraint("status <> 'answered' OR answer IS NOT NULL", name="answered_has_answer"),
        _finite("quality"),
    )

    operation_id: Mapped[uuid.UUID] = mapped_column(reference("fusion_operations"), primary_key=True)
    position: Mapped[Int] = mapped_column(primary_key=True, comment="order of the calls; a member may be called again")
    # Deferred: a reactor that is deleted takes its members a moment before their answers. A member alone cannot go.
    member_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("arc_halo.reactor_models.id", deferrable=True, initially="DEFERRED"), index=True
    )
    # Copies of what the member was then: its row may point to another version later.
    model_id: Mapped[uuid.UUID | None] = mapped_column(reference("models", ondelete="RESTRICT"), index=True)
    weights_digest: Mapped[Digest | None]
    role: Mapped[str]
    weight: Mapped[float]
    status: Mapped[str]
    prompt: Mapped[dict[str, Any] | None]
    answer: Mapped[dict[str, Any] | None]
    score: Mapped[float | None] = mapped_column(comment="what the strategy made of the answer")
    quality: Mapped[float | None] = mapped_column(comment="of the answer, measured as that of the operation")
    propensity: Mapped[float | None] = mapped_column(comment="probability of this choice, where it was left to chance")
    began_seconds: Mapped[float | None] = mapped_column(comment="after the operation began")
    latency_seconds: Mapped[float | None]
    prompt_token_count: Mapped[Int | None]
    generated_token_count: Mapped[Int | None]
    cached_token_count: Mapped[Int | None]
    cost: Mapped[float | None] = mapped_column(comment="in the currency of the member's price list")
    error: Mapped[str | None]

    operation: Mapped[FusionOperation] = relationship(back_populates="members")
    member: Mapped[ReactorModel] = relationship()
    model: Mapped[Model | None] = relationship()


class ReactorMetric(Base):
    """How well a reactor did, in one operation or over a window of many."""

    __tablename__ = "reactor_metrics"
    __table_args__ = (
        Index(None, "reactor_id", "recorded_at"),
        *not_negative("window_seconds", "operation_count", "operations_per_second"),
        {"postgresql_partition_by": "RANGE (recorded_at)"},
    )

    id: Mapped[Key]
    recorded_at: Mapped[Now] = mapped_column(primary_key=True)
    reactor_id: Mapped[uuid.UUID] = mapped_column(reference("cognitive_fusion_reactors"))
    operation_id: Mapped[uuid.UUID | None] = mapped_column(
        reference("fusion_operations"), index=True, comment="null: over a window"
    )
    window_seconds: Mapped[float | None]
    operation_count: Mapped[int] = mapped_column(default=1, server_default=text("1"))
    operations_per_second: Mapped[float | None] = mapped_column(comment="throughput")
    coherence: Mapped[float | None]
    diversity: Mapped[float | None]
    quality: Mapped[float | None]
    gain: Mapped[float | None] = mapped_column(comment="quality above that of the best member alone")
    oracle_gap: Mapped[float | None] = mapped_column(comment="quality below that of the best answer any member gave")
    calibration_error: Mapped[float | None] = mapped_column(comment="expected, of scores; over a window")
    brier_score: Mapped[float | None] = mapped_column(comment="mean squared error of scores, over a window")

    reactor: Mapped[Reactor] = relationship()
    operation: Mapped[FusionOperation | None] = relationship()


declare_partitions(ReactorMetric.__table__, "SELECT arc_halo.ensure_time_partitions('arc_halo.reactor_metrics')")

"""Training: runs, their attempts and ranks, and metrics."""

# ruff: noqa: TC003  (SQLAlchemy evaluates the annotations of mapped classes)

from __future__ import annotations

import datetime as dt
import uuid
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Double,
    FetchedValue,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP
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

if TYPE_CHECKING:
    from arc_halo.schema.checkpoints import ModelCheckpoint

METRIC_PARTITIONS = 4
SEGMENT_POINTS = 4096
BLOCK_POINTS = 64


class TrainingSession(Timestamped, Tenanted, Base):
    """A training run of a model: what it shall do, and how far it is."""

    __tablename__ = "training_sessions"
    __table_args__ = (
        UniqueConstraint("model_id", "name"),
        closed_set("status", "pending", "running", "completed", "failed", "stopped"),
        *digest_length("dataset_digest"),
        *not_negative("total_epochs", "total_steps", "current_epoch", "current_step"),
    )

    id: Mapped[Key]
    model_id: Mapped[uuid.UUID] = mapped_column(reference("models"))
    name: Mapped[str]
    status: Mapped[str] = mapped_column(default="pending", server_default="pending")
    config: Mapped[dict[str, Any]] = mapped_column(
        default=dict, server_default=EMPTY_OBJECT, comment="learning rate, batch size, optimizer, ..., as resolved"
    )
    dataset_name: Mapped[str | None]
    dataset_digest: Mapped[Digest | None] = mapped_column(comment="BLAKE3-256 of the data set's manifest")
    seed: Mapped[int | None]
    total_epochs: Mapped[float | None] = mapped_column(comment="planned; epochs may be fractions")
    total_steps: Mapped[int | None]
    current_epoch: Mapped[float] = mapped_column(default=0.0, server_default=text("0"))
    current_step: Mapped[int] = mapped_column(default=0, server_default=text("0"))

    model: Mapped[Model] = relationship()
    attempts: Mapped[list[TrainingAttempt]] = relationship(
        back_populates="training_session", passive_deletes="all", order_by="TrainingAttempt.attempt_number"
    )
    checkpoints: Mapped[list[ModelCheckpoint]] = relationship(
        back_populates="training_session",
        passive_deletes="all",
        order_by="ModelCheckpoint.created_at",
        foreign_keys="ModelCheckpoint.training_session_id",
    )


class TrainingAttempt(Base):
    """One start or restart of a run; history walks from child to parent, up to each fork step."""

    __tablename__ = "training_attempts"
    __table_args__ = (
        UniqueConstraint("training_session_id", "attempt_number"),
        UniqueConstraint("training_session_id", "id"),
        # A parent has a smaller number, so attempts are a tree whatever is written.
        ForeignKeyConstraint(
            ["training_session_id", "parent_number"],
            ["arc_halo.training_attempts.training_session_id", "arc_halo.training_attempts.attempt_number"],
        ),
        Index(None, "training_session_id", "parent_number"),
        CheckConstraint("parent_number < attempt_number", name="parent_is_older"),
        CheckConstraint("(parent_number IS NULL) = (fork_step IS NULL)", name="fork_step_of_parent"),
        closed_set("status", "running", "completed", "failed", "stopped", "lost"),
        closed_set("verified_level", "L0", "L1", "L2"),
        *digest_length("code_digest", "environment_digest"),
        *not_negative("attempt_number", "fork_step"),
    )

    id: Mapped[Key]
    training_session_id: Mapped[uuid.UUID] = mapped_column(reference("training_sessions"))
    attempt_number: Mapped[Int]
    parent_number: Mapped[Int | None]
    fork_step: Mapped[int | None] = mapped_column(comment="last step of the parent that is part of this line")
    # No foreign key: retention deletes checkpoints, and the id of a deleted one still says what was resumed.
    fork_checkpoint_id: Mapped[uuid.UUID | None] = mapped_column(comment="checkpoint it was resumed from")
    status: Mapped[str] = mapped_column(default="running", server_default="running")
    host: Mapped[str | None]
    pid: Mapped[Int | None]
    code_digest: Mapped[Digest | None] = mapped_column(comment="BLAKE3-256 of commit and uncommitted changes")
    environment_digest: Mapped[Digest | None] = mapped_column(comment="BLAKE3-256 of the installed packages")
    provenance: Mapped[dict[str, Any]] = mapped_column(
        default=dict, server_default=EMPTY_OBJECT, comment="commit, changes, packages, hardware, seeds"
    )
    boot_id: Mapped[str | None] = mapped_column(comment="start of the machine: tells whether its pid can be asked for")
    process_started_at: Mapped[dt.datetime | None] = mapped_column(comment="tells it from a later one of its pid")
    verified_level: Mapped[str | None] = mapped_column(
        comment="L0 provenance kept, L1 run again with equal results, L2 resumed bit for bit; null: not compared"
    )
    # No foreign key: what was verified stays so when the other attempt is deleted.
    verified_against_id: Mapped[uuid.UUID | None] = mapped_column(comment="attempt it was compared with")
    error: Mapped[str | None]
    started_at: Mapped[Now]
    heartbeat_at: Mapped[Now] = mapped_column(comment="an attempt that is silent for too long may be taken over")
    ended_at: Mapped[dt.datetime | None]

    training_session: Mapped[TrainingSession] = relationship(
        back_populates="attempts", foreign_keys=training_session_id
    )
    parent: Mapped[TrainingAttempt | None] = relationship(
        viewonly=True,
        remote_side="TrainingAttempt.attempt_number",
        primaryjoin="and_(foreign(TrainingAttempt.parent_number) == remote(TrainingAttempt.attempt_number),"
        " TrainingAttempt.training_session_id == remote(TrainingAttempt.training_session_id))",
    )
    series: Mapped[list[MetricSeries]] = relationship(
        back_populates="attempt", passive_deletes="all", order_by="MetricSeries.id"
    )
    ranks: Mapped[list[TrainingRank]] = relationship(
        back_populates="attempt", passive_deletes="all", order_by="TrainingRank.rank"
    )


class TrainingRank(Base):
    """One process of an attempt that trains in several; the attempt itself is kept by rank 0."""

    __tablename__ = "training_ranks"
    __table_args__ = (
        closed_set("status", "running", "completed", "failed", "stopped", "lost"),
        CheckConstraint("rank < world_size", name="rank_below_world_size"),
        *not_negative("rank"),
    )

    attempt_id: Mapped[uuid.UUID] = mapped_column(reference("training_attempts"), primary_key=True)
    rank: Mapped[Int] = mapped_column(primary_key=True)
    world_size: Mapped[Int]
    status: Mapped[str] = mapped_column(default="running", server_default="running")
    host: Mapped[str | None]
    pid: Mapped[Int | None]
    error: Mapped[str | None]
    started_at: Mapped[Now]
    heartbeat_at: Mapped[Now]
    ended_at: Mapped[dt.datetime | None]

    attempt: Mapped[TrainingAttempt] = relationship(back_populates="ranks")


class MetricSeries(Base):
    """One metric of one attempt: what the points of a curve have in common."""

    __tablename__ = "metric_series"
    __table_args__ = (
        UniqueConstraint("attempt_id", "name", "scope", "context"),
        closed_set("scope", "train", "validation", "test", "system"),
        closed_set("goal", "minimize", "maximize"),
    )

    id: Mapped[int] = mapped_column(Integer, Identity(always=True), primary_key=True)
    attempt_id: Mapped[uuid.UUID] = mapped_column(reference("training_attempts"))
    name: Mapped[str]
    scope: Mapped[str] = mapped_column(default="train", server_default="train")
    context: Mapped[dict[str, Any]] = mapped_column(
        default=dict, server_default=EMPTY_OBJECT, comment="what else tells it apart: rank, layer, data set"
    )
    goal: Mapped[str | None] = mapped_column(comment="which values are better; set for the main metrics of a run only")
    sealed_through_step: Mapped[int | None] = mapped_column(comment="points up to here stand in metric_segments")
    created_at: Mapped[Now]

    attempt: Mapped[TrainingAttempt] = relationship(back_populates="series")
    points: Mapped[list[TrainingMetric]] = relationship(
        passive_deletes="all",
        primaryjoin="MetricSeries.id == foreign(TrainingMetric.series_id)",
        order_by="TrainingMetric.step",
    )
    segments: Mapped[list[MetricSegment]] = relationship(passive_deletes="all", order_by="MetricSegment.first_step")
    summary: Mapped[MetricSummary | None] = relationship(passive_deletes="all")


class MetricSummary(Base):
    """What is asked of a series most, over its points, sealed or not: triggers keep it true whatever is written."""

    __tablename__ = "metric_summaries"
    __table_args__ = (
        *not_negative("point_count", "nan_count", "first_step"),
        # It changes with each statement that adds points; room on its page lets that be cheap.
        {"postgresql_with": {"fillfactor": 50}},
    )

    series_id: Mapped[Int] = mapped_column(reference("metric_series"), primary_key=True, autoincrement=False)
    point_count: Mapped[int]
    nan_count: Mapped[int]
    first_step: Mapped[int | None] = mapped_column(comment="null if all points were deleted, as all that follows")
    last_step: Mapped[int | None]
    last_value: Mapped[float | None] = mapped_column(comment="at last_step")
    last_recorded_at: Mapped[dt.datetime | None] = mapped_column(comment="at last_step")
    min_value: Mapped[float | None] = mapped_column(comment="null if every value is NaN, as the next three")
    min_at_step: Mapped[int | None] = mapped_column(comment="the first of equals")
    max_value: Mapped[float | None]
    max_at_step: Mapped[int | None] = mapped_column(comment="the first of equals")


class TrainingMetric(Base):
    """A point of a metric series that is not sealed yet."""

    __tablename__ = "training_metrics"
    __table_args__ = (*not_negative("step"), {"postgresql_partition_by": "HASH (series_id)"})

    # No foreign key, which would ask for every point by itself: the triggers in functions.py ask once per statement,
    # lock the series as a foreign key does, and cascade. Deleting a series wants READ COMMITTED: an older snapshot
    # would hide points that came since. COPY keeps 0.8 of its speed so, with a foreign key 0.3.
    # A step that is sealed is refused by the same triggers, as training_metrics_sealed.
    series_id: Mapped[Int] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    epoch: Mapped[float | None]
    value: Mapped[float] = mapped_column(comment="NaN and infinities as they are")
    recorded_at: Mapped[Now]


declare_partitions(
    TrainingMetric.__table__,
    *(
        f"CREATE TABLE arc_halo.training_metrics_{remainder} PARTITION OF arc_halo.training_metrics"
        f" FOR VALUES WITH (MODULUS {METRIC_PARTITIONS}, REMAINDER {remainder})"
        for remainder in range(METRIC_PARTITIONS)
    ),
)

_LENGTHS = " AND ".join(
    f"cardinality({column}) = point_count" for column in ("steps", "epochs", "point_values", "recorded_times")
)


class MetricSegment(Base):
    """A sealed stretch of a metric series: its points as arrays, and what charts ask of them."""

    __tablename__ = "metric_segments"
    __table_args__ = (
        CheckConstraint(f"point_count BETWEEN 1 AND {SEGMENT_POINTS}", name="point_count_bound"),
        CheckConstraint(_LENGTHS, name="arrays_equally_long"),
        CheckConstraint("first_step = steps[1] AND last_step = steps[point_count]", name="step_range"),
        *not_negative("first_step", "nan_count"),
    )

    series_id: Mapped[Int] = mapped_column(reference("metric_series"), primary_key=True)
    first_step: Mapped[int] = mapped_column(primary_key=True)
    last_step: Mapped[int]
    point_count: Mapped[Int]
    nan_count: Mapped[Int] = mapped_column(default=0, server_default=text("0"))
    min_value: Mapped[float | None] = mapped_column(comment="null if every value is NaN, as the next three")
    min_at_step: Mapped[int | None]
    max_value: Mapped[float | None]
    max_at_step: Mapped[int | None]
    last_value: Mapped[float]
    steps: Mapped[list[int]] = mapped_column(ARRAY(BigInteger), comment="ascending")
    epochs: Mapped[list[float | None]] = mapped_column(ARRAY(Double))
    point_values: Mapped[list[float]] = mapped_column(ARRAY(Double))
    recorded_times: Mapped[list[dt.datetime]] = mapped_column(ARRAY(TIMESTAMP(timezone=True)))
    # Written by a trigger from the arrays above, so that charts read these alone.
    block_steps: Mapped[list[list[int]]] = mapped_column(
        ARRAY(BigInteger, dimensions=2),
        FetchedValue(),
        FetchedValue(),
        nullable=True,
        comment="of each 64 points: first and last step, step of the minimum, of the maximum; computed",
    )
    block_values: Mapped[list[list[float]]] = mapped_column(
        ARRAY(Double, dimensions=2),
        FetchedValue(),
        FetchedValue(),
        nullable=True,
        comment="of each 64 points: last value, minimum, maximum, NaN if every value is; computed",
    )

"""Views, and read-only classes mapped on them; the query of each is ``sql/<name>.sql``."""

# ruff: noqa: TC001, TC003  (SQLAlchemy evaluates the annotations of mapped classes)

from __future__ import annotations

import datetime as dt
import uuid
from types import MappingProxyType
from typing import Any, NoReturn

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, Table, Text, Uuid, event, text
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import Mapped, relationship
from sqlalchemy.sql.ddl import CreateView

from arc_halo.errors import ReadOnlyDatabase
from arc_halo.schema.base import SCHEMA, Base
from arc_halo.schema.core import Model
from arc_halo.schema.functions import sql_source
from arc_halo.schema.fusion import Reactor
from arc_halo.schema.training import MetricSeries, TrainingSession


def view(name: str, *columns: Column[Any], materialized: bool = False) -> Table:
    """A view of that name in the metadata; the columns say types and comments, in the order of the query."""
    query = text(sql_source(name)).columns(*columns)
    table = CreateView(query, name, metadata=Base.metadata, schema=SCHEMA, materialized=materialized).table
    for column in columns:
        table.c[column.name].comment = column.comment
    return table


class ReadOnly:
    """What is computed from other rows: reading is all one can do."""


@event.listens_for(ReadOnly, "before_insert", propagate=True)
@event.listens_for(ReadOnly, "before_update", propagate=True)
@event.listens_for(ReadOnly, "before_delete", propagate=True)
def _refuse_write(mapper: Any, _connection: object, _target: object) -> NoReturn:
    raise ReadOnlyDatabase(f"{mapper.local_table} is a view and cannot be written: change the rows it is computed from")


class ModelArchitecture(ReadOnly, Base):
    """What each model is made of: layers, heads, weights, parameters and bytes."""

    __table__ = view(
        "v_model_architecture",
        Column("model_id", Uuid),
        Column("name", Text),
        Column("version", Text),
        Column("model_type", Text),
        Column("status", Text),
        Column("layers_by_type", JSONB, comment="number of layers of each type"),
        Column("head_count", BigInteger),
        Column("weight_count", BigInteger, comment="named weights and buffers, tied ones included"),
        Column("parameter_count", BigInteger, comment="tied weights count once, buffers not at all"),
        Column("trainable_parameter_count", BigInteger),
        Column("nbytes", BigInteger, comment="as they are used, tied weights counted once"),
        Column("stored_nbytes", BigInteger, comment="of the distinct chunks; other models may share them"),
    )
    __mapper_args__ = MappingProxyType({"primary_key": [__table__.c.model_id]})

    model_id: Mapped[uuid.UUID]
    name: Mapped[str]
    version: Mapped[str]
    model_type: Mapped[str]
    status: Mapped[str]
    layers_by_type: Mapped[dict[str, int]]
    head_count: Mapped[int]
    weight_count: Mapped[int]
    parameter_count: Mapped[int]
    trainable_parameter_count: Mapped[int]
    nbytes: Mapped[int]
    stored_nbytes: Mapped[int]

    model: Mapped[Model] = relationship(viewonly=True, primaryjoin="foreign(ModelArchitecture.model_id) == Model.id")


class TrainingPoint(ReadOnly, Base):
    """Every point of every metric series, sealed or not."""

    __table__ = view(
        "v_training_points",
        Column("series_id", Integer),
        Column("step", BigInteger),
        Column("epoch", Double),
        Column("value", Double),
        Column("recorded_at", TIMESTAMP(timezone=True)),
        Column("is_sealed", Boolean, comment="whether it stands in a segment"),
    )
    __mapper_args__ = MappingProxyType({"primary_key": [__table__.c.series_id, __table__.c.step]})

    series_id: Mapped[int]
    step: Mapped[int]
    epoch: Mapped[float | None]
    value: Mapped[float]
    recorded_at: Mapped[dt.datetime]
    is_sealed: Mapped[bool]

    series: Mapped[MetricSeries] = relationship(
        viewonly=True, primaryjoin="foreign(TrainingPoint.series_id) == MetricSeries.id"
    )


class TrainingProgress(ReadOnly, Base):
    """How far each training run is: its newest attempt, its main metrics, its pace and the time left."""

    __table__ = view(
        "v_training_progress",
        Column("training_session_id", Uuid),
        Column("name", Text),
        Column("model_id", Uuid),
        Column("model_name", Text),
        Column("model_version", Text),
        Column("status", Text),
        Column("attempt_number", Integer, comment="the newest attempt"),
        Column("current_epoch", Double),
        Column("total_epochs", Double),
        Column("current_step", BigInteger),
        Column("total_steps", BigInteger),
        Column(
            "metrics",
            JSONB,
            comment="scope/name: goal, last, last_step, best, best_step of each series with a goal, through all forks",
        ),
        Column("heartbeat_age_seconds", Double, comment="null unless the attempt is running"),
        Column("steps_per_second", Double, comment="of the newest attempt, from its start to its last heartbeat"),
        Column("remaining_seconds", Double, comment="at that pace; null unless the run is running"),
    )
    __mapper_args__ = MappingProxyType({"primary_key": [__table__.c.training_session_id]})

    training_session_id: Mapped[uuid.UUID]
    name: Mapped[str]
    model_id: Mapped[uuid.UUID]
    model_name: Mapped[str]
    model_version: Mapped[str]
    status: Mapped[str]
    attempt_number: Mapped[int | None]
    current_epoch: Mapped[float]
    total_epochs: Mapped[float | None]
    current_step: Mapped[int]
    total_steps: Mapped[int | None]
    metrics: Mapped[dict[str, Any]]
    heartbeat_age_seconds: Mapped[float | None]
    steps_per_second: Mapped[float | None]
    remaining_seconds: Mapped[float | None]

    training_session: Mapped[TrainingSession] = relationship(
        viewonly=True, primaryjoin="foreign(TrainingProgress.training_session_id) == TrainingSession.id"
    )
    model: Mapped[Model] = relationship(viewonly=True, primaryjoin="foreign(TrainingProgress.model_id) == Model.id")


class ReactorStatus(ReadOnly, Base):
    """How each reactor does: members, operations, errors, latency, and the last of each quality figure."""

    __table__ = view(
        "v_reactor_status",
        Column("reactor_id", Uuid),
        Column("name", Text),
        Column("strategy", Text),
        Column("status", Text),
        Column("members_by_role", JSONB, comment="number of members in each role"),
        Column("operation_count", BigInteger),
        Column("error_rate", Double, comment="share of operations that failed or timed out; null before the first"),
        Column("latency_p50_seconds", Double),
        Column("latency_p95_seconds", Double),
        Column("latency_p99_seconds", Double),
        Column("last_operation_at", TIMESTAMP(timezone=True)),
        Column("coherence", Double, comment="the last that was measured, as the next three"),
        Column("diversity", Double),
        Column("quality", Double),
        Column("gain", Double, comment="quality above that of the best member alone"),
    )
    __mapper_args__ = MappingProxyType({"primary_key": [__table__.c.reactor_id]})

    reactor_id: Mapped[uuid.UUID]
    name: Mapped[str]
    strategy: Mapped[str]
    status: Mapped[str]
    members_by_role: Mapped[dict[str, int]]
    operation_count: Mapped[int]
    error_rate: Mapped[float | None]
    latency_p50_seconds: Mapped[float | None]
    latency_p95_seconds: Mapped[float | None]
    latency_p99_seconds: Mapped[float | None]
    last_operation_at: Mapped[dt.datetime | None]
    coherence: Mapped[float | None]
    diversity: Mapped[float | None]
    quality: Mapped[float | None]
    gain: Mapped[float | None]

    reactor: Mapped[Reactor] = relationship(
        viewonly=True, primaryjoin="foreign(ReactorStatus.reactor_id) == Reactor.id"
    )


class TensorStatistics(ReadOnly, Base):
    """Statistics of each model's tensors by layer type and category, as of the last refresh_statistics()."""

    __table__ = view(
        "mv_tensor_statistics",
        Column("model_id", Uuid),
        Column("model_name", Text),
        Column("model_version", Text),
        Column("layer_type", Text, comment="none for weights that belong to no layer"),
        Column("category", Text),
        Column("tensor_count", BigInteger, comment="tied weights count once, here and in what follows"),
        Column("element_count", BigInteger),
        Column("nbytes", BigInteger),
        Column("min_value", Double, comment="over finite elements, as the next three"),
        Column("max_value", Double),
        Column("mean", Double),
        Column("l2_norm", Double),
        Column("zero_fraction", Double),
        Column("nan_count", BigInteger),
        Column("inf_count", BigInteger),
        materialized=True,
    )
    __mapper_args__ = MappingProxyType(
        {"primary_key": [__table__.c.model_id, __table__.c.layer_type, __table__.c.category]}
    )

    model_id: Mapped[uuid.UUID]
    model_name: Mapped[str]
    model_version: Mapped[str]
    layer_type: Mapped[str]
    category: Mapped[str]
    tensor_count: Mapped[int]
    element_count: Mapped[int]
    nbytes: Mapped[int]
    min_value: Mapped[float | None]
    max_value: Mapped[float | None]
    mean: Mapped[float | None]
    l2_norm: Mapped[float | None]
    zero_fraction: Mapped[float | None]
    nan_count: Mapped[int]
    inf_count: Mapped[int]

    model: Mapped[Model] = relationship(viewonly=True, primaryjoin="foreign(TensorStatistics.model_id) == Model.id")


# REFRESH ... CONCURRENTLY demands that it is unique.
Index(None, TensorStatistics.model_id, TensorStatistics.layer_type, TensorStatistics.category, unique=True)

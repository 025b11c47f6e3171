"""Views over metrics: what was reached along the line of a run."""

# ruff: noqa: TC001, TC003  (SQLAlchemy evaluates the annotations of mapped classes)

from __future__ import annotations

import datetime as dt
import uuid
from types import MappingProxyType
from typing import Any

from sqlalchemy import BigInteger, Column, Double, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import Mapped, relationship

from arc_halo.schema.base import Base
from arc_halo.schema.training import TrainingSession
from arc_halo.schema.views import ReadOnly, view


class RunMetric(ReadOnly, Base):
    """Each metric of each run along the line of its newest attempt: last, best, minimum, maximum."""

    __table__ = view(
        "v_run_metrics",
        Column("training_session_id", Uuid),
        Column("metric", Text, comment="scope/name, and the context where there is one"),
        Column("name", Text),
        Column("scope", Text),
        Column("context", JSONB),
        Column("goal", Text),
        Column("point_count", BigInteger),
        Column("nan_count", BigInteger),
        Column("first_step", BigInteger),
        Column("last_step", BigInteger),
        Column("last_value", Double, comment="at last_step"),
        Column("last_recorded_at", TIMESTAMP(timezone=True), comment="when the newest point was recorded"),
        Column("min_value", Double, comment="null if every value is NaN, as the next three"),
        Column("min_at_step", BigInteger, comment="the first of equals"),
        Column("max_value", Double),
        Column("max_at_step", BigInteger, comment="the first of equals"),
        Column("best_value", Double, comment="by the goal; null without one"),
    )
    __mapper_args__ = MappingProxyType({"primary_key": [__table__.c.training_session_id, __table__.c.metric]})

    training_session_id: Mapped[uuid.UUID]
    metric: Mapped[str]
    name: Mapped[str]
    scope: Mapped[str]
    context: Mapped[dict[str, Any]]
    goal: Mapped[str | None]
    point_count: Mapped[int]
    nan_count: Mapped[int]
    first_step: Mapped[int]
    last_step: Mapped[int]
    last_value: Mapped[float]
    last_recorded_at: Mapped[dt.datetime]
    min_value: Mapped[float | None]
    min_at_step: Mapped[int | None]
    max_value: Mapped[float | None]
    max_at_step: Mapped[int | None]
    best_value: Mapped[float | None]

    training_session: Mapped[TrainingSession] = relationship(
        viewonly=True, primaryjoin="foreign(RunMetric.training_session_id) == TrainingSession.id"
    )

"""Training runs as a table: what each is, how far it came, and its metrics."""

from __future__ import annotations

import datetime as dt  # noqa: TC003  dataclasses are looked into by others
import uuid  # noqa: TC003  as above
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Double, func, select, true
from sqlalchemy.orm import aliased

from arc_halo.schema import Model, ModelCheckpoint, TrainingAttempt, TrainingSession
from arc_halo.schema.columns import TENANT_ID
from arc_halo.schema.html import html_table
from arc_halo.training.naming import runs_meant
from arc_halo.training.summaries import RunMetrics, summarize_runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run with its newest attempt and the metrics along that one's line."""

    id: uuid.UUID
    model_id: uuid.UUID
    model_name: str
    model_version: str
    name: str
    status: str
    config: dict[str, Any]
    dataset_name: str | None
    dataset_digest: bytes | None
    seed: int | None
    current_step: int
    total_steps: int | None
    current_epoch: float
    total_epochs: float | None
    created_at: dt.datetime
    attempt_count: int
    checkpoint_count: int
    attempt_number: int | None
    attempt_status: str | None
    fork_step: int | None
    host: str | None
    pid: int | None
    code_digest: bytes | None
    environment_digest: bytes | None
    error: str | None
    started_at: dt.datetime | None
    heartbeat_at: dt.datetime | None
    heartbeat_age_seconds: float | None
    ended_at: dt.datetime | None
    metrics: RunMetrics = field(default_factory=RunMetrics, repr=False)

    @property
    def run(self) -> str:
        """``model@version/name``."""
        return f"{self.model_name}@{self.model_version}/{self.name}"

    @property
    def steps_per_second(self) -> float | None:
        """Of the newest attempt, from its start to its last heartbeat, as v_training_progress has it."""
        if self.heartbeat_at is None or self.started_at is None or self.heartbeat_at <= self.started_at:
            return None
        return (self.current_step - (self.fork_step or 0)) / (self.heartbeat_at - self.started_at).total_seconds()

    @property
    def remaining_seconds(self) -> float | None:
        """At that pace; None unless it is running towards a known number of steps."""
        pace = self.steps_per_second
        if self.status != "running" or self.total_steps is None or not pace:
            return None
        return max(self.total_steps - self.current_step, 0) / pace


class Runs(list[RunSummary]):
    """Runs that were found; a table in a notebook."""

    def _repr_html_(self) -> str:
        goals = list(dict.fromkeys(name for run in self for name, goal in run.metrics.goals.items() if goal))
        headers = ["run", "status", "step", "attempts", *(f"best {name}" for name in goals)]
        return html_table(headers, [(*_cells(run), *(_best(run, name) for name in goals)) for run in self])


def _cells(run: RunSummary) -> tuple[object, ...]:
    return run.run, run.status, run.current_step, run.attempt_count


def _best(run: RunSummary, metric: str) -> float | None:
    return run.metrics[metric].best_value if metric in run.metrics else None


def describe_runs(
    session: Session, references: Iterable[TrainingSession | uuid.UUID | str], *, metrics: bool = True
) -> Runs:
    """Runs in the order of their references, each once; two statements, however many metrics.

    Raises
    ------
    RunNotFound
        One of them means none.
    """
    ids = [each.id for each in runs_meant(session, references)]
    found = {each.id: each for each in fetch_runs(session, [TrainingSession.id.in_(ids)], metrics=metrics)}
    return Runs(found[each] for each in ids)


def fetch_runs(
    session: Session,
    conditions: Sequence[ColumnElement[bool]],
    *,
    order_by: Sequence[ColumnElement[Any]] = (),
    limit: int | None = None,
    metrics: bool = True,
) -> Runs:
    """Runs that fulfil conditions on `TrainingSession` and `Model`, the newest first, by one statement for each table.

    Parameters
    ----------
    metrics
        Read those, too, by a second statement.
    """
    statement = _runs().where(TrainingSession.tenant_id == TENANT_ID, *conditions)
    ordered = statement.order_by(*order_by, TrainingSession.id.desc()).limit(limit)
    rows = session.execute(ordered).mappings().all()
    found = summarize_runs(session, [row["id"] for row in rows]) if metrics else {}
    return Runs(RunSummary(**row, metrics=found.get(row["id"], RunMetrics())) for row in rows)


def _runs() -> Select[Any]:
    newest = aliased(
        TrainingAttempt,
        select(TrainingAttempt)
        .where(TrainingAttempt.training_session_id == TrainingSession.id)
        .order_by(TrainingAttempt.attempt_number.desc())
        .limit(1)
        .lateral("newest"),
    )
    age = func.extract("epoch", func.statement_timestamp() - newest.heartbeat_at).cast(Double)
    run = TrainingSession
    return (
        select(
            *(run.id, run.model_id, Model.name.label("model_name"), Model.version.label("model_version"), run.name),
            *(run.status, run.config, run.dataset_name, run.dataset_digest, run.seed),
            *(run.current_step, run.total_steps, run.current_epoch, run.total_epochs, run.created_at),
            _count(TrainingAttempt).label("attempt_count"),
            _count(ModelCheckpoint, ModelCheckpoint.status == "published").label("checkpoint_count"),
            *(newest.attempt_number, newest.status.label("attempt_status"), newest.fork_step, newest.host, newest.pid),
            *(newest.code_digest, newest.environment_digest, newest.error, newest.started_at, newest.heartbeat_at),
            age.label("heartbeat_age_seconds"),
            newest.ended_at,
        )
        .join(Model, Model.id == run.model_id)
        .outerjoin(newest, true())
    )


def _count(entity: type[TrainingAttempt | ModelCheckpoint], *conditions: ColumnElement[bool]) -> Any:
    counted = select(func.count()).where(entity.training_session_id == TrainingSession.id, *conditions)
    return counted.correlate(TrainingSession).scalar_subquery()

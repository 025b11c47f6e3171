"""Runs as a training loop has them, on a database of a test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sqlalchemy import select, text

from arc_halo import create_model
from arc_halo.schema import Model, TrainingAttempt, TrainingSession
from arc_halo.training.checkpoint import CheckpointState
from arc_halo.training.run import training_run

if TYPE_CHECKING:
    from arc_halo.database import Database

_POINTS = text("""
SELECT a.attempt_number, n.name, n.scope, p.step, p.value
  FROM arc_halo.training_attempts AS a
  JOIN arc_halo.metric_series AS n ON n.attempt_id = a.id
  JOIN arc_halo.v_training_points AS p ON p.series_id = n.id
 ORDER BY a.attempt_number, n.name, n.scope, p.step
""")


def state(number: float = 1.0) -> CheckpointState:
    return CheckpointState(weights={"w": np.full((3, 4), number, np.float32)}, extra={"number": number})


def add_model(database: Database, name: str = "m") -> None:
    arrays = {"w": np.zeros((3, 4), np.float32), "b": np.zeros(4, np.float32)}
    database.transaction(lambda session: create_model(session, name, {}, arrays))


@pytest.fixture
def begin(database, tmp_path):
    """Begin a run of a model that is there; the database is one of the test's own."""
    add_model(database)
    usual = {"model": "m", "name": "r", "spool_folder": tmp_path / "spool", "capture": False}

    def begin(db=database, **options):
        return training_run(db, **(usual | options))

    return begin


def attempts(database: Database) -> list[Any]:
    with database.session() as session:
        return list(session.scalars(select(TrainingAttempt).order_by(TrainingAttempt.attempt_number)))


def run_of(database: Database) -> Any:
    with database.session() as session:
        return session.scalars(select(TrainingSession)).one()


def model_status(database: Database) -> str:
    with database.session() as session:
        return session.scalars(select(Model.status)).one()


def stored(database: Database, *, name: str = "loss") -> list[tuple[int, int, float]]:
    """Attempt, step and value of each point of a metric that is in the database."""
    with database.session() as session:
        return [(row.attempt_number, row.step, row.value) for row in session.execute(_POINTS) if row.name == name]

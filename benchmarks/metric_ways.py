"""Two stores of metrics on one server: ours, and MLflow's SqlAlchemyStore."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

import arc_halo
from arc_halo.schema import TrainingAttempt, TrainingSession
from arc_halo.training import chart, find_runs, seal_points, write_points
from arc_halo.training.points import POINT, series_ids, series_key

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator
    from pathlib import Path

    from server import Server
    from sqlalchemy.orm import Session

BATCH = 1000
"""Metrics that MLflow takes in one call."""
BUCKETS = 1000
_FILL_POINTS = 1_000_000
_STARTED = 1_780_000_000_000_000  # microseconds since 1970
_STEP_TIME = 25_000


@dataclass(frozen=True)
class Curves:
    """Points of several metrics: ``values`` has shape (metrics, steps), of the steps from ``first_step`` on."""

    names: list[str]
    first_step: int
    values: np.ndarray

    @property
    def steps(self) -> np.ndarray:
        """Of each column."""
        return np.arange(self.first_step, self.first_step + self.values.shape[1])

    @property
    def times(self) -> np.ndarray:
        """Of each column, in microseconds."""
        return _STARTED + self.steps * _STEP_TIME

    def at(self, first_step: int) -> Curves:
        """The same values at other steps."""
        return Curves(self.names, first_step, self.values)


def make_curves(metrics: int, steps: int, seed: int = 0) -> Curves:
    """Losses that fall and are noisy, as training has them: no two values are equal."""
    random = np.random.default_rng(seed)
    trend = 10 / np.log(np.arange(steps) + 3) * random.uniform(0.5, 2, (metrics, 1))
    values = trend + random.normal(0, 0.05, (metrics, steps))
    return Curves([f"train_loss_{number:03}" for number in range(metrics)], 0, values)


class Ours:
    """Arc-Halo."""

    def __init__(self, server: Server) -> None:
        self.url = server.create("ours")
        self.database = arc_halo.connect(self.url)
        self._server = server.connect("ours")
        self.database.transaction(lambda session: arc_halo.create_model(session, "m", {}, {"w": np.zeros(1)}))

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    def begin(self, name: str, names: list[str]) -> tuple[uuid.UUID, np.ndarray]:
        """A run with an attempt and series: the attempt's id, and those of the series."""

        def create(session: Session) -> tuple[uuid.UUID, list[int]]:
            model = arc_halo.find_model(session, "m")
            run = TrainingSession(model_id=model.id, name=name, status="completed")
            attempt = TrainingAttempt(training_session=run, attempt_number=0, status="completed")
            session.add(attempt)
            session.flush()
            keys = [series_key(each) for each in names]
            ids = series_ids(session, attempt.id, keys)
            return attempt.id, [ids[key] for key in keys]

        attempt_id, ids = self.database.transaction(create)
        return attempt_id, np.array(ids, np.int32)

    def write(self, ids: np.ndarray, curves: Curves, *, is_fresh: bool = False) -> float:
        """Seconds to write curves of a run and commit, from plain arrays."""
        began = time.perf_counter()
        points = np.empty(curves.values.shape, POINT)
        points["series_id"] = ids[:, None]
        points["step"], points["recorded_at"] = curves.steps, curves.times
        points["value"], points["epoch"] = curves.values, np.nan
        self.database.transaction(lambda session: write_points(session, points.reshape(-1), is_fresh=is_fresh))
        return time.perf_counter() - began

    def log_steps(self, ids: np.ndarray, curves: Curves) -> list[float]:
        """Seconds of each step: its points written and committed."""
        points = np.empty((len(curves.steps), len(ids)), POINT)
        points["series_id"], points["epoch"] = ids, np.nan
        points["step"], points["recorded_at"] = curves.steps[:, None], curves.times[:, None]
        points["value"] = curves.values.T
        seconds = []
        with self.database.session() as session:
            for each in points:
                began = time.perf_counter()
                write_points(session, each)
                session.commit()
                seconds.append(time.perf_counter() - began)
        return seconds

    def fill(self, name: str, curves: Curves, *, sealed: bool) -> None:
        """A run with these curves."""
        _, ids = self.begin(name, curves.names)
        rows = max(1, _FILL_POINTS // curves.values.shape[1])
        for start in range(0, len(ids), rows):
            part = slice(start, start + rows)
            self.write(ids[part], Curves(curves.names[part], 0, curves.values[part]), is_fresh=True)
        if sealed:
            self.database.transaction(lambda session: seal_points(session, f"m/{name}"))

    def fill_runs(self, runs: int, names: list[str]) -> None:
        """Runs with one point of each metric."""
        for number in range(runs):
            _, ids = self.begin(f"listed_{number:05}", names)
            self.write(ids, Curves(names, 0, np.random.default_rng(number).random((len(names), 1))), is_fresh=True)

    def list_runs(self, runs: int) -> float:
        """Seconds to list the runs and read each metric's last value."""
        with self.database.session() as session:
            began = time.perf_counter()
            found = find_runs(session, name="listed_*", limit=runs)
            _read_all(run.metrics.last_values for run in found)
            seconds = time.perf_counter() - began
        assert len(found) == runs
        return seconds

    def draw(self, name: str, curves: Curves) -> float:
        """Seconds to a chart with exact minima and maxima."""
        with self.database.session() as session:
            began = time.perf_counter()
            buckets = chart(session, f"m/{name}", curves.names[0], buckets=BUCKETS)
            seconds = time.perf_counter() - began
        assert buckets["point_count"].sum() == curves.values.shape[1]
        assert buckets["min_value"].min() == curves.values[0].min()
        assert buckets["max_value"].max() == curves.values[0].max()
        return seconds

    def sealed_nbytes(self) -> float:
        """Bytes of a sealed point, on average: the segments with their TOAST and indexes."""
        ((nbytes, points),) = self._server.execute(
            "SELECT pg_total_relation_size('arc_halo.metric_segments'),"
            " (SELECT sum(point_count) FROM arc_halo.metric_segments)"
        ).fetchall()
        return float(nbytes / points)

    def delete_command(self, name: str) -> list[str]:
        """What a user types to delete a run."""
        url = self.url.render_as_string(hide_password=False)
        return ["arc_halo", "--url", url, "train", "delete", f"m/{name}", "--yes"]

    def count_points(self) -> int:
        """Sealed or not."""
        ((count,),) = self._server.execute("SELECT sum(point_count)::bigint FROM arc_halo.metric_summaries").fetchall()
        return int(count or 0)


class Mlflow:
    """MLflow's store for a database server, called as its tracking server calls it."""

    quiet: ClassVar = {"MLFLOW_DISABLE_TELEMETRY": "true"}

    def __init__(self, server: Server, folder: Path) -> None:
        os.environ.update(self.quiet)
        for quieted in ("alembic", "mlflow", "psycopg"):
            logging.getLogger(quieted).setLevel(logging.ERROR)
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # noqa: PLC0415  an extra

        self.uri = server.create_empty("mlflow").render_as_string(hide_password=False)
        self.store = SqlAlchemyStore(self.uri, folder.as_uri())
        self._server = server.connect("mlflow")
        self.experiment = self.store.create_experiment("benchmark")

    def close(self) -> None:
        """Let go of the database."""
        self.store.engine.dispose()

    def begin(self, name: str) -> str:
        """A run's id."""
        run = self.store.create_run(self.experiment, "user", _STARTED // 1000, [], name)
        return str(run.info.run_id)

    def metrics(self, curves: Curves) -> list[Any]:
        """Curves as MLflow takes them, step by step."""
        from mlflow.entities import Metric  # noqa: PLC0415

        return [
            Metric(name, float(curves.values[row, column]), int(moment) // 1000, int(step))
            for column, (step, moment) in enumerate(zip(curves.steps, curves.times, strict=True))
            for row, name in enumerate(curves.names)
        ]

    def write(self, run: str, metrics: list[Any], *, batch: int = BATCH) -> list[float]:
        """Seconds of each call of `log_batch`."""
        seconds = []
        for start in range(0, len(metrics), batch):
            began = time.perf_counter()
            self.store.log_batch(run, metrics[start : start + batch], [], [])
            seconds.append(time.perf_counter() - began)
        return seconds

    def log_beside(self, run: str, curves: Curves, batch: int) -> float:
        """Seconds until all are stored that were given to its queue, a step at a time."""
        metrics = self.metrics(curves)
        began = time.perf_counter()
        pending = [
            self.store.log_batch_async(run, metrics[start : start + batch], [], [])
            for start in range(0, len(metrics), batch)
        ]
        for each in pending:
            each.wait()
        return time.perf_counter() - began

    def fill(self, name: str, curves: Curves) -> str:
        """A run with these curves, by COPY: its own way would take hours."""
        run = self.begin(name)
        with self._server.cursor().copy(
            "COPY metrics (key, value, timestamp, run_uuid, step, is_nan) FROM STDIN (FORMAT BINARY)"
        ) as copy:
            copy.set_types(["varchar", "float8", "int8", "varchar", "int8", "bool"])
            steps, times = curves.steps.tolist(), (curves.times // 1000).tolist()
            for key, values in zip(curves.names, curves.values, strict=True):
                for value, step, moment in zip(values.tolist(), steps, times, strict=True):
                    copy.write_row((key, value, moment, run, step, False))
        self._fill_latest([(run, key, values[-1]) for key, values in zip(curves.names, curves.values, strict=True)])
        return run

    def fill_runs(self, runs: int, names: list[str]) -> None:
        """Runs with a last value of each metric."""
        made = [self.begin(f"listed_{number:05}") for number in range(runs)]
        values = [np.random.default_rng(number).random(len(names)) for number in range(runs)]
        self._fill_latest(
            [
                (run, name, value)
                for run, each in zip(made, values, strict=True)
                for name, value in zip(names, each, strict=True)
            ]
        )

    def _fill_latest(self, rows: list[tuple[str, str, float]]) -> None:
        with self._server.cursor().copy(
            "COPY latest_metrics (key, value, timestamp, step, is_nan, run_uuid) FROM STDIN"
        ) as copy:
            for run, key, value in rows:
                copy.write_row((key, float(value), _STARTED // 1000, 0, False, run))

    def list_runs(self, runs: int) -> float:
        """Seconds to list the runs and read each metric's last value."""
        from mlflow.entities import ViewType  # noqa: PLC0415

        began = time.perf_counter()
        found = self.store.search_runs(
            [self.experiment], "attributes.run_name LIKE 'listed_%'", ViewType.ACTIVE_ONLY, max_results=runs
        )
        _read_all(run.data.metrics for run in found)
        seconds = time.perf_counter() - began
        assert len(found) == runs
        return seconds

    def draw(self, run: str, curves: Curves) -> float:
        """Seconds to its chart, which leaves points out."""
        began = time.perf_counter()
        found = self.store.get_metric_history_bulk_interval([run], curves.names[0], BUCKETS, None, None)
        seconds = time.perf_counter() - began
        assert 0 < len(found) <= BUCKETS
        return seconds

    def draw_exactly(self, run: str, curves: Curves) -> float:
        """Seconds to minima and maxima of its rows, asked of them in SQL."""
        last = int(curves.steps[-1])
        began = time.perf_counter()
        found = self._server.execute(
            "SELECT width_bucket(step, 0, %s, %s), min(value), max(value) FROM metrics"
            " WHERE run_uuid = %s AND key = %s GROUP BY 1 ORDER BY 1",
            [last + 1, BUCKETS, run, curves.names[0]],
        ).fetchall()
        seconds = time.perf_counter() - began
        assert min(low for _, low, _ in found) == curves.values[0].min()
        return seconds

    def point_nbytes(self, run: str) -> float:
        """Bytes of a point with all indexes, of a table that has the points of one run alone."""
        self._server.execute("DROP TABLE IF EXISTS one_run")
        self._server.execute("CREATE TABLE one_run (LIKE metrics INCLUDING ALL)")
        self._server.execute("INSERT INTO one_run SELECT * FROM metrics WHERE run_uuid = %s ORDER BY key, step", [run])
        ((nbytes, points),) = self._server.execute(
            "SELECT pg_total_relation_size('one_run'), (SELECT count(*) FROM one_run)"
        ).fetchall()
        self._server.execute("DROP TABLE one_run")
        return float(nbytes / points)

    def delete_command(self, run: str) -> list[str]:
        """What a user types to delete a run for good; marking it as deleted comes before, and is not counted."""
        self.store.delete_run(run)
        where = ["--backend-store-uri", self.uri, "--tracking-uri", self.uri]
        return ["mlflow", "gc", *where, "--run-ids", run]

    def count_points(self) -> int:
        """All that are there."""
        ((count,),) = self._server.execute("SELECT count(*) FROM metrics").fetchall()
        return int(count)


def _read_all(every: Iterator[dict[str, float]]) -> None:
    total = sum(sum(each.values()) for each in every)
    assert np.isfinite(total)

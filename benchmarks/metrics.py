"""Metrics of training beside MLflow's SqlAlchemyStore on the same server: writing, logging, charts, lists, deleting.

Each comparison takes turns, ours and theirs within seconds of one another. MLflow writes by `log_batch`, a thousand
metrics a call, or five where steps are logged one by one; what is read or deleted was filled by COPY on its side. Both
delete by their command line, in processes of their own, whose memory is measured. MLflow is the extra `benchmark`;
without it our own figures alone are measured.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]  # ships no types
from command import command_line, publish, scratch
from machine import describe_machine
from metric_report import BEGIN, END, MLFLOW, Deletion, Memory, Recorded, Results, Size, Task, goals, to_markdown
from metric_ways import BATCH, Curves, Mlflow, Ours, make_curves
from server import Server

from arc_halo.training import training_run

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {
    "tiny": Size(
        turns=2, metrics=4, steps=500, batches=2, logged=20, chart_points=10_000, listed_runs=20, summaries=10,
        deleted_points=10_000,
        recorded_steps=2000,
    ),
    "full": Size(
        turns=5, metrics=20, steps=20_000, batches=20, logged=300, chart_points=1_000_000, listed_runs=5000,
        summaries=100, deleted_points=6_000_000,
        recorded_steps=200_000,
    ),
}  # fmt: skip
_LOGGED_METRICS = 5
_DELETED_METRICS = 60
_LOOK_SECONDS = 0.01


class Comparison:
    """The measurements of one run; each method takes what it needs from both stores."""

    def __init__(self, ours: Ours, mlflow: Mlflow | None, server: Server, size: Size) -> None:
        self.ours, self.mlflow, self.server, self.size = ours, mlflow, server, size
        self.nbytes = Memory(0, None)

    def ingest(self) -> list[Task]:
        """Many points at once, as often as there are turns: fresh, new steps, the same again, other values."""
        size = self.size
        fresh = make_curves(size.metrics, size.steps)
        later = make_curves(size.metrics, size.steps // 4, 1).at(size.steps)
        other = make_curves(size.metrics, size.steps // 4, 2).at(size.steps)
        their_steps = max(1, size.batches * BATCH // size.metrics)
        theirs = [Curves(each.names, each.first_step, each.values[:, :their_steps]) for each in (fresh, later, other)]
        tasks = [
            Task("into a fresh attempt, by COPY", "points/s", goal=60),
            Task("steps above those that are there", "points/s", goal=25),
            Task("points that are there already, equal", "points/s", goal=25),
            Task("points that are there already, other values", "points/s", goal=25),
        ]
        for turn in range(size.turns):
            _, ids = self.ours.begin(f"ingest_{turn}", fresh.names)
            run = self.mlflow.begin(f"ingest_{turn}") if self.mlflow else ""
            # Of MLflow the points of the second and third are the same: only so are they there already.
            for task, mine, other_s in zip(
                tasks, (fresh, later, later, other), (theirs[0], theirs[1], theirs[1], theirs[2]), strict=True
            ):
                seconds = self.ours.write(ids, mine, is_fresh=mine is fresh)
                task.ours.append(mine.values.size / seconds)
                if self.mlflow:
                    metrics = self.mlflow.metrics(other_s)
                    task.theirs.append(len(metrics) / sum(self.mlflow.write(run, metrics)))
            self.server.checkpoint()
        return tasks

    def log(self) -> Task:
        """Steps of five metrics, each committed by itself."""
        task = Task("five metrics of one step, committed by themselves", "steps/s")
        for turn in range(self.size.turns):
            curves = make_curves(_LOGGED_METRICS, self.size.logged, turn)
            _, ids = self.ours.begin(f"logged_{turn}", curves.names)
            task.ours.append(1 / median(self.ours.log_steps(ids, curves)))
            if self.mlflow:
                few = Curves(curves.names, 0, curves.values[:, : max(10, self.size.logged // 3)])
                metrics = self.mlflow.metrics(few)
                seconds = self.mlflow.write(self.mlflow.begin(f"logged_{turn}"), metrics, batch=_LOGGED_METRICS)
                task.theirs.append(1 / median(seconds))
        return task

    def record(self) -> tuple[Task, Recorded]:
        """A loop that does nothing but log and never waits: through our recorder, and MLflow's queue."""
        curves = make_curves(_LOGGED_METRICS, self.size.recorded_steps)
        steps = [dict(zip(curves.names, column, strict=True)) for column in curves.values.T.tolist()]
        few = Curves(curves.names, 0, curves.values[:, : self.size.recorded_steps // 100])
        task = Task("`log` of five metrics a step, until all are rows", "steps/s", goal=20)
        recorded = Recorded(curves.values.size, [], [], [])
        for turn in range(self.size.turns):
            self._record(f"recorded_{turn}", steps, recorded)
            task.ours.append(len(steps) / recorded.stored_seconds[-1])
            if self.mlflow:
                seconds = self.mlflow.log_beside(self.mlflow.begin(f"recorded_{turn}"), few, _LOGGED_METRICS)
                task.theirs.append(len(few.steps) / seconds)
        return task, recorded

    def _record(self, name: str, steps: list[dict[str, float]], recorded: Recorded) -> None:
        with training_run(self.ours.database, model="m", name=name, capture=False) as run:
            began = time.perf_counter()
            for step, metrics in enumerate(steps):
                before = time.perf_counter()
                run.log(metrics, step)
                recorded.call_seconds.append(time.perf_counter() - before)
            recorded.logged_seconds.append(time.perf_counter() - began)
            run.flush()
            recorded.stored_seconds.append(time.perf_counter() - began)

    def draw(self) -> list[Task]:
        """A chart of a run that is sealed, as runs are that have ended."""
        curves = make_curves(1, self.size.chart_points)
        self.ours.fill("drawn", curves, sealed=True)
        run = self.mlflow.fill("drawn", curves) if self.mlflow else ""
        self.server.vacuum()
        self.nbytes = Memory(self.ours.sealed_nbytes(), self.mlflow.point_nbytes(run) if self.mlflow else None)
        sampled = Task("chart with exact minima and maxima; theirs leaves points out", "ms", goal=5, most=50)
        exact = Task("the same; theirs asked by SQL for minima and maxima", "ms")
        for _ in range(self.size.turns + 1):
            mine = self.ours.draw("drawn", curves) * 1e3
            sampled.ours.append(mine)
            exact.ours.append(mine)
            if self.mlflow:
                sampled.theirs.append(self.mlflow.draw(run, curves) * 1e3)
                exact.theirs.append(self.mlflow.draw_exactly(run, curves) * 1e3)
        return [sampled.warmed(), exact.warmed()]

    def list_runs(self) -> Task:
        """Many runs, each with the last value of many metrics."""
        names = make_curves(self.size.summaries, 1).names
        self.ours.fill_runs(self.size.listed_runs, names)
        if self.mlflow:
            self.mlflow.fill_runs(self.size.listed_runs, names)
        self.server.vacuum()
        task = Task(f"list {self.size.listed_runs:,} runs with {self.size.summaries} metrics each", "s", goal=5)
        for _ in range(self.size.turns + 1):
            task.ours.append(self.ours.list_runs(self.size.listed_runs))
            if self.mlflow:
                task.theirs.append(self.mlflow.list_runs(self.size.listed_runs))
        return task.warmed()

    def delete(self) -> list[Deletion]:
        """A large run, by command: ours sealed and not, theirs; and small ones for what the process itself takes."""
        whole = make_curves(_DELETED_METRICS, self.size.deleted_points // _DELETED_METRICS)
        kinds = {f"small{turn}": make_curves(_DELETED_METRICS, 10) for turn in range(self.size.turns)} | {
            "whole": whole
        }
        commands = []
        for kind, curves in kinds.items():
            for way, sealed in (("Arc-Halo, sealed as runs are", True), ("Arc-Halo, not sealed", False)):
                self.ours.fill(f"{kind}_{sealed}", curves, sealed=sealed)
                commands.append((way, kind, self.ours.delete_command(f"{kind}_{sealed}")))
            if self.mlflow:
                commands.append((MLFLOW, kind, self.mlflow.delete_command(self.mlflow.fill(kind, curves))))
        self.server.vacuum()
        return [Deletion(way, kind.rstrip("0123456789"), *run_command(command)) for way, kind, command in commands]


def run_command(command: list[str]) -> tuple[float, float]:
    """Seconds of a command in a process of its own, and the most MiB that it was seen to hold."""
    began = time.perf_counter()
    peak = 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=said, stderr=said)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            with suppress(psutil.Error):  # it has just ended
                peak = max(peak, watched.memory_info().rss)
            time.sleep(_LOOK_SECONDS)
        seconds = time.perf_counter() - began
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{command[0]} failed: {said.read().decode(errors='replace')[-2000:]}")
    return seconds, peak / 2**20


def run(size: Size, folder: Path, resources: ExitStack) -> Results:
    """Measure everything on a new server."""
    server = Server(folder / "home", resources)
    has_peer = find_spec("mlflow") is not None
    machine = describe_machine(server.connection, folder, ["mlflow"] if has_peer else [])
    ours = Ours(server)
    resources.callback(ours.close)
    mlflow = Mlflow(server, folder / "artifacts") if has_peer else None
    if mlflow:
        resources.callback(mlflow.close)
    comparison = Comparison(ours, mlflow, server, size)
    tasks = comparison.ingest()
    _tell("writing")
    logged, recorded = comparison.record()
    tasks += [logged, comparison.log(), *comparison.draw()]
    _tell("logging, charts")
    tasks.append(comparison.list_runs())
    _tell("lists")
    return Results(machine, size, tasks, comparison.nbytes, recorded, comparison.delete())


def _tell(what: str) -> None:
    print(f"measured: {what}", file=sys.stderr, flush=True)


def main() -> None:
    """Run, print, and leave nothing behind."""
    options = command_line(__doc__, "to see that it runs").parse_args()
    with scratch() as (folder, resources):
        results = run(SIZES[options.size], folder, resources)
    reached = goals(results)
    publish(options, asdict(results), reached, to_markdown(results, reached), (BEGIN, END))


if __name__ == "__main__":
    main()

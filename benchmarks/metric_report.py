"""What was measured of metrics, as tables of Markdown, beside what was aimed at."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING

from report import Goal, goal_table, table

if TYPE_CHECKING:
    from collections.abc import Iterator

MLFLOW = "MLflow"
BEGIN, END = "<!-- metrics: begin -->", "<!-- metrics: end -->"


@dataclass(frozen=True)
class Size:
    """How much is measured; of what is ingested MLflow gets so many batches, and ours all steps."""

    turns: int
    metrics: int
    steps: int
    batches: int
    logged: int
    chart_points: int
    listed_runs: int
    summaries: int
    deleted_points: int
    recorded_steps: int


@dataclass(frozen=True)
class Task:
    """Something that both do: a figure of each turn, higher is better unless it is a time."""

    name: str
    unit: str
    goal: float | None = None
    most: float | None = None
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """How many times better ours is: the median over turns."""
        pairs = zip(self.ours, self.theirs, strict=True) if self.theirs else None
        if pairs is None:
            return None
        return median(theirs / ours if self.unit in ("s", "ms") else ours / theirs for ours, theirs in pairs)

    def warmed(self) -> Task:
        """Without the first turn, in which pages were read for the first time."""
        return replace(self, ours=self.ours[1:], theirs=self.theirs[1:])


@dataclass(frozen=True)
class Memory:
    """Bytes of a point with indexes."""

    ours: float
    theirs: float | None


@dataclass(frozen=True)
class Recorded:
    """A loop that logs so many points: seconds of each call, and of each turn for the loop and until all were rows."""

    points: int
    call_seconds: list[float]
    logged_seconds: list[float]
    stored_seconds: list[float]


@dataclass(frozen=True)
class Deletion:
    """One command that deleted a run: its seconds, and the most MiB of its process."""

    way: str
    kind: str
    seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Results:
    """All of one run."""

    machine: dict[str, str]
    size: Size
    tasks: list[Task]
    nbytes: Memory
    recorded: Recorded
    deletions: list[Deletion]

    def deleted(self, way: str, kind: str) -> list[Deletion]:
        """Those of one way and size of a run."""
        return [each for each in self.deletions if (each.way, each.kind) == (way, kind)]


def goals(results: Results) -> list[Goal]:
    """What metrics are held to."""
    return [
        *_of_tasks(results.tasks),
        *_of_size(results.nbytes),
        *_of_recorder(results.recorded),
        *_of_deletions(results),
    ]


def _of_tasks(tasks: list[Task]) -> Iterator[Goal]:
    for task in tasks:
        if task.goal is not None and task.ratio is not None:
            yield Goal(f"{task.name}: at least {task.goal:g} x MLflow", f"{task.ratio:.1f}", task.ratio >= task.goal)
        if task.most is not None:
            mine = median(task.ours)
            yield Goal(f"{task.name}: at most {task.most:g} {task.unit}", f"{mine:.1f}", mine <= task.most)


def _of_size(nbytes: Memory) -> Iterator[Goal]:
    if nbytes.theirs is not None:
        share = nbytes.ours / nbytes.theirs
        yield Goal("a sealed point: at most 1/8 of MLflow's bytes", f"1/{1 / share:.1f}", share <= 1 / 8)


def _of_recorder(recorded: Recorded) -> Iterator[Goal]:
    call = median(recorded.call_seconds) * 1e6
    yield Goal("a call of `log` with five metrics: at most 50 µs, median", f"{call:.1f} µs", call <= 50)
    rate = recorded.points / median(recorded.stored_seconds)
    yield Goal("recorder: at least 100,000 points/s as rows", f"{rate:,.0f}", rate >= 100_000)


def _of_deletions(results: Results) -> Iterator[Goal]:
    for way in dict.fromkeys(each.way for each in results.deletions if each.way != MLFLOW):
        if results.deleted(MLFLOW, "whole"):
            ratio = _net_seconds(results, MLFLOW) / _net_seconds(results, way)
            aim = f"delete a run, {way}, less the time for a small one: at least 10 x `mlflow gc`"
            yield Goal(aim, f"{ratio:.1f}", ratio >= 10)
        whole, small = results.deleted(way, "whole"), results.deleted(way, "small")
        grown = max(each.peak_mib for each in whole) - min(each.peak_mib for each in small)
        yield Goal(f"delete a run, {way}: at most 8 MiB more than for a small one", f"{grown:+.1f} MiB", grown <= 8)


def _net_seconds(results: Results, way: str) -> float:
    """What deleting takes, without the start of the process, which is not the same each time: 0.1 s at least."""
    whole, small = (median(each.seconds for each in results.deleted(way, kind)) for kind in ("whole", "small"))
    return max(whole - small, 0.1)


def to_markdown(results: Results, reached: list[Goal]) -> str:
    """All tables of a run."""
    size, recorded = results.size, results.recorded
    rows = [_row(task) for task in results.tasks]
    calls = sorted(recorded.call_seconds)
    deletions = [
        (way, "600" if kind == "small" else f"{size.deleted_points:,}", f"{median(e.seconds for e in found):.2f}",
         f"{max(e.peak_mib for e in found):.0f}")
        for way in dict.fromkeys(each.way for each in results.deletions)
        for kind in ("small", "whole")
        if (found := results.deleted(way, kind))
    ]  # fmt: skip
    parts = [
        table(["on", ""], results.machine.items()),
        "### Beside MLflow's store\n",
        table(["", "Arc-Halo", "MLflow", "", "x MLflow"], rows),
        f"A chart is of {size.chart_points:,} points. Bytes of a point with its indexes: "
        f"{results.nbytes.ours:.1f} sealed"
        + (f", {results.nbytes.theirs:.0f} in MLflow's table.\n" if results.nbytes.theirs else ".\n"),
        f"### The recorder\n\n{recorded.points:,} points, five a step, by a loop that does nothing else:\n",
        table(
            ["", ""],
            [
                ("a call of `log`, median", f"{median(calls) * 1e6:.1f} µs"),
                ("of a thousand calls the slowest but one", f"{calls[-max(1, len(calls) // 1000)] * 1e6:.0f} µs"),
                ("points/s taken from the loop", f"{recorded.points / median(recorded.logged_seconds):,.0f}"),
                ("points/s, until all were rows", f"{recorded.points / median(recorded.stored_seconds):,.0f}"),
            ],
        ),
        "### Deleting a run, as a command\n",
        table(["", "points", "s", "MiB, at most"], deletions),
        "### Goals of metrics\n",
        goal_table(reached),
    ]
    return "\n".join(parts)


def _row(task: Task) -> list[str]:
    digits = {"s": 2, "ms": 1}.get(task.unit, 0)
    theirs = f"{median(task.theirs):,.{digits}f}" if task.theirs else ""
    ratio = f"{task.ratio:.1f}" if task.ratio is not None else ""
    return [task.name, f"{median(task.ours):,.{digits}f}", theirs, task.unit, ratio]

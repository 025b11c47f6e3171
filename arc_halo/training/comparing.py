"""Runs side by side: what was set differently, what each reached, and their curves step by step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arc_halo.schema.html import html_table
from arc_halo.training.curves import charts
from arc_halo.training.history import fetch_histories
from arc_halo.training.landmarks import find_landmarks
from arc_halo.training.plots import CurvePlot
from arc_halo.training.runs import describe_runs
from arc_halo.training.series import find_tracks

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.schema import TrainingSession
    from arc_halo.training.curves import Curve
    from arc_halo.training.keys import SeriesKey
    from arc_halo.training.landmarks import Landmarks
    from arc_halo.training.runs import Runs, RunSummary

_DRAWN: Final = 6
"""How many metrics are drawn if none is asked for."""
_BUCKETS: Final = 500


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that was not set alike: its values by run, as ``model@version/name``; runs without it are left out.

    ``key`` leads into the config by dots, or is ``seed``, ``dataset``, ``code`` or ``environment`` in brackets.
    """

    key: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Runs side by side; tables and a picture in a notebook."""

    runs: Runs
    differences: list[Difference]
    equal_count: int
    curves: list[Curve] = field(repr=False)
    landmarks: Mapping[uuid.UUID, Landmarks] = field(repr=False)

    @property
    def metrics(self) -> list[str]:
        """All metrics that any of the runs has recorded; those with a goal first."""
        goals = {name: goal for run in self.runs for name, goal in run.metrics.goals.items()}
        return sorted(goals, key=lambda name: (goals[name] is None, name))

    def plot(self, *, smoothing: float = 0.0, log: bool = False) -> CurvePlot:
        """The curves that were read: a panel for each metric, a line for each run."""
        return CurvePlot(self.curves, self.landmarks, smoothing=smoothing, log=log)

    def _repr_html_(self) -> str:
        names = [run.run for run in self.runs]
        set_ = [(each.key, *(_shown(each.values.get(name)) for name in names)) for each in self.differences]
        reached = [(name, *(_reached(run, name) for run in self.runs)) for name in self.metrics]
        picture = self.plot()._repr_html_() if self.curves else None
        return (
            html_table(["set differently", *names], set_)
            + html_table(["best, or last", *names], reached)
            + (picture or "")
        )


@dataclass(frozen=True, slots=True)
class AlignedCurves:
    """A metric of several runs at all steps that any of them has.

    ``steps`` has shape (n,), ``values`` (runs, n), NaN where a run has no point.
    """

    metric: str
    runs: list[str]
    steps: np.ndarray = field(repr=False)
    values: np.ndarray = field(repr=False)


def compare_runs(
    session: Session,
    runs: Sequence[TrainingSession | uuid.UUID | str],
    metrics: Collection[str | SeriesKey] | None = None,
) -> RunComparison:
    """Compare what runs were set to and what they reached, along the line of each one's newest attempt.

    Parameters
    ----------
    metrics
        Whose curves to read; by default the first six of those that have a goal, or of all if none has one.

    Raises
    ------
    RunNotFound
        There is no such run.
    MetricNotFound
        No run has recorded a metric that is asked for.

    Examples
    --------
    >>> comparison = compare_runs(session, ["minilm/tune", "minilm/again"])  # doctest: +SKIP
    >>> comparison.plot(smoothing=0.9).save(Path("both.png"))  # doctest: +SKIP
    """
    described = describe_runs(session, runs)
    settings = [dict(_settings(run)) for run in described]
    keys = list(dict.fromkeys(key for each in settings for key in each))
    differing = [key for key in keys if not all(key in each and each[key] == settings[0].get(key) for each in settings)]
    differences = [
        Difference(key, {run.run: each[key] for run, each in zip(described, settings, strict=True) if key in each})
        for key in differing
    ]
    ids = [run.id for run in described]
    chosen = main_metrics(described) if metrics is None else metrics
    curves = charts(session, ids, chosen, buckets=_BUCKETS) if chosen else []
    return RunComparison(described, differences, len(keys) - len(differing), curves, find_landmarks(session, ids))


def main_metrics(runs: Runs) -> list[str]:
    """What to draw if nothing is asked for: metrics with a goal, or if there are none the first few of all."""
    goals = {name: goal for run in runs for name, goal in run.metrics.goals.items()}
    return sorted([name for name, goal in goals.items() if goal] or goals)[:_DRAWN]


def align_curves(
    session: Session, runs: Sequence[TrainingSession | uuid.UUID | str], metric: str | SeriesKey = "loss"
) -> AlignedCurves:
    """A metric of several runs on one axis of steps; runs that have not recorded it are left out.

    Raises
    ------
    RunNotFound, MetricNotFound
        There is no such run, or none of them has recorded it.
    """
    tracks = find_tracks(session, runs, [metric])
    histories = fetch_histories(session, tracks)
    steps = np.unique(np.concatenate([points["step"] for points in histories]))
    values = np.full((len(tracks), len(steps)), np.nan)
    for row, points in zip(values, histories, strict=True):
        row[np.searchsorted(steps, points["step"])] = points["value"]
    return AlignedCurves(tracks[0].metric, [track.run for track in tracks], steps, values)


def _settings(run: RunSummary) -> Iterator[tuple[str, Any]]:
    """What may differ between runs: the config, leaf by leaf, and what else they were made with."""
    yield from leaves(run.config)
    others = {
        "seed": run.seed,
        "dataset": run.dataset_name,
        "data": run.dataset_digest and run.dataset_digest.hex(),
        "code": run.code_digest and run.code_digest.hex(),
        "environment": run.environment_digest and run.environment_digest.hex(),
    }
    yield from ((f"[{name}]", value) for name, value in others.items() if value is not None)


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Those of a config by dotted keys."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> Any:
    return (
        value
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        else ""
        if value is None
        else str(value)
    )


def _reached(run: RunSummary, metric: str) -> float | None:
    summary = run.metrics.get(metric)
    if summary is None:
        return None
    return summary.last_value if summary.goal is None else summary.best_value

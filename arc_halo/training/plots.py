"""Pictures of curves: a panel for each metric, a line for each run, with checkpoints, forks and what is not finite."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arc_halo.registry.picture import Picture, new_figure
from arc_halo.training.curves import charts
from arc_halo.training.landmarks import find_landmarks
from arc_halo.training.smoothing import check_weight, ema

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from sqlalchemy.orm import Session

    from arc_halo.schema import TrainingSession
    from arc_halo.training.curves import Curve
    from arc_halo.training.keys import SeriesKey
    from arc_halo.training.landmarks import Landmarks

# Okabe and Ito (2008): told apart with and without a colour vision deficiency, and in grey.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
_ACROSS: Final = {1: 1, 2: 2, 3: 3, 4: 2}
_WIDEST: Final = 3
_GREY: Final = "#495057"


@dataclass(frozen=True, slots=True)
class CurvePlot(Picture):
    """Curves with what they are drawn with; a picture in a notebook, a file by `save`."""

    curves: Sequence[Curve] = field(repr=False)
    landmarks: Mapping[uuid.UUID, Landmarks] = field(default_factory=dict, repr=False)
    smoothing: float = 0.0
    log: bool = False
    title: str | None = None

    def figure(self) -> Figure:
        """A new figure of matplotlib, to be changed and saved by its own methods.

        Raises
        ------
        ConfigurationError
            matplotlib is not installed.
        """
        metrics = list(dict.fromkeys(curve.metric for curve in self.curves)) or [""]
        across = _ACROSS.get(len(metrics), _WIDEST)
        down = -(-len(metrics) // across)
        figure = new_figure((2.2 + 4.6 * across, 0.6 + 2.9 * down))
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for panel, metric in zip(panels, metrics, strict=False):
            self._draw(panel, metric)
        for panel in panels[len(metrics) :]:
            panel.set_axis_off()
        self._label(figure, panels[0])
        return figure

    @property
    def said(self) -> str:
        """Which metrics of which runs."""
        return ", ".join(dict.fromkeys(f"{each.metric} of {each.run}" for each in self.curves))

    def _draw(self, panel: Axes, metric: str) -> None:
        runs = self._runs()
        for curve in self.curves:
            if curve.metric == metric and len(curve.buckets):
                place = runs.index(curve.run_id)
                colour = COLOURS[place % len(COLOURS)]
                _draw_curve(panel, curve, colour, self.smoothing)
                _draw_crosses(panel, curve, colour, place)
                if curve.run_id in self.landmarks:
                    _draw_landmarks(panel, self.landmarks[curve.run_id], curve, colour, place)
        panel.set_title(metric, loc="left", fontsize=10)
        panel.set_yscale("log" if self.log else "linear")
        panel.margins(x=0.01)
        panel.grid(color="#e9ecef", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlabel("step")

    def _runs(self) -> list[uuid.UUID]:
        return list(dict.fromkeys(curve.run_id for curve in self.curves))

    def _label(self, figure: Figure, panel: Axes) -> None:
        """A legend of the runs where there are several, and of the marks where there are any."""
        from matplotlib.lines import Line2D  # noqa: PLC0415  an extra, as above

        names = {curve.run_id: curve.run for curve in self.curves}
        signs = [
            Line2D([], [], color=COLOURS[place % len(COLOURS)], label=names[run])
            for place, run in enumerate(self._runs())
        ]
        marks = list(self.landmarks.values())
        if any(each.checkpoints.size for each in marks):
            signs.append(Line2D([], [], marker="^", markersize=5, label="checkpoint", color=_GREY, linestyle="none"))
        if any(each.best_checkpoints.size for each in marks):
            signs.append(
                Line2D([], [], marker="*", markersize=9, label="best checkpoint", color=_GREY, linestyle="none")
            )
        if any(each.forks for each in marks):
            signs.append(Line2D([], [], color=_GREY, linestyle=":", label="resumed"))
        if any(len(steps) for each in self.curves for steps in _not_finite(each.buckets)):
            signs.append(Line2D([], [], marker="x", markersize=5, label="not finite", color=_GREY, linestyle="none"))
        if signs:
            figure.legend(handles=signs, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
        if self.title:
            figure.suptitle(self.title, fontsize=11, x=0.01, ha="left")
        if not self.curves:
            panel.text(0.5, 0.5, "no points yet", ha="center", va="center", transform=panel.transAxes)


def _draw_curve(panel: Axes, curve: Curve, colour: str, smoothing: float) -> None:
    """The last value of each bucket as a line, over the range of its values; smoothed over the line that it was."""
    buckets = curve.buckets
    ends = np.array([buckets["first_step"][0], buckets["last_step"][-1]], np.float64)
    panel.update_datalim(np.column_stack([ends, ends]), updatey=False)  # also where nothing can be drawn
    steps, values = buckets["last_step"], buckets["last_value"]
    if (buckets["point_count"] > 1).any():
        panel.fill_between(steps, buckets["min_value"], buckets["max_value"], color=colour, alpha=0.25, linewidth=0.5)
    if smoothing:
        panel.plot(steps, values, color=colour, alpha=0.35, linewidth=0.8)
        values = ema(values, smoothing)
    alone = _alone(values).tolist()
    marks: dict[str, Any] = {"marker": "o", "markevery": alone, "markersize": 3} if alone else {}
    panel.plot(steps, values, color=colour, linewidth=1.4, **marks)


def _alone(values: np.ndarray) -> np.ndarray:
    """Positions of finite values between others, of which no line is drawn."""
    finite = np.pad(np.isfinite(values), 1)
    return np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:])


def _not_finite(buckets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps with values that have no place on the axis: -inf, and NaN or +inf.

    Where a bucket has many points these are its extremes and its last: NaN before a number in it is not known of.
    """
    at = [
        (buckets[value], buckets[step])
        for value, step in (("min_value", "min_at_step"), ("max_value", "max_at_step"), ("last_value", "last_step"))
    ]
    below = np.concatenate([steps[np.isneginf(values)] for values, steps in at])
    above = np.concatenate([steps[np.isnan(values) | np.isposinf(values)] for values, steps in at])
    return np.unique(below), np.unique(above)


def _draw_crosses(panel: Axes, curve: Curve, colour: str, place: int) -> None:
    """What is not finite, at the edges of the panel: a curve that diverges does not look as if it had ended."""
    from matplotlib.patheffects import withStroke  # noqa: PLC0415  an extra, as above

    below, above = _not_finite(curve.buckets)
    for steps, height in ((below, 0.03 * place), (above, 1 - 0.03 * place)):
        if len(steps):
            panel.plot(
                steps,
                np.full(len(steps), height),
                transform=panel.get_xaxis_transform(),
                marker="x",
                markersize=4,
                zorder=3,
                path_effects=[withStroke(linewidth=3, foreground="white")],  # to be seen on a checkpoint's sign
                color=colour,
                linestyle="none",
                clip_on=False,
            )


def _draw_landmarks(panel: Axes, landmarks: Landmarks, curve: Curve, colour: str, place: int) -> None:
    """Checkpoints on the floor of the panel, and a dotted line wherever an attempt took over in between."""
    reached = [*landmarks.checkpoints, curve.buckets["first_step"][0], curve.buckets["last_step"][-1]]
    first, last = min(reached), max(reached)
    floor = panel.get_xaxis_transform()
    for steps, marker, size in ((landmarks.checkpoints, "^", 5), (landmarks.best_checkpoints, "*", 9)):
        height = np.full(len(steps), 0.02 + 0.04 * place)
        signs: dict[str, Any] = {
            "marker": marker,
            "markersize": size,
            "color": colour,
            "linestyle": "none",
            "clip_on": False,
        }
        if len(steps):  # of none the layout would be undone
            panel.plot(steps, height, transform=floor, **signs)
    for fork in landmarks.forks:
        if first <= fork.step <= last:
            panel.axvline(fork.step, color=colour, linestyle=":", linewidth=1)
            said = panel.annotate(
                f"attempt {fork.attempt_number}",
                (fork.step, 1.0),
                xycoords=floor,
                xytext=(2, -2 - 8 * place),
                textcoords="offset points",
                ha="left",
                va="top",
                fontsize=7,
                color=colour,
            )
            said.set_in_layout(False)  # it may run over the edge, where it is cut


def plot_runs(
    session: Session,
    runs: Sequence[TrainingSession | uuid.UUID | str],
    metrics: Collection[str | SeriesKey] | None = None,
    *,
    smoothing: float = 0.0,
    log: bool = False,
    buckets: int = 500,
    title: str | None = None,
) -> CurvePlot:
    """Draw metrics of one run or several, along the line of each one's newest attempt, spikes included.

    Parameters
    ----------
    metrics
        As in `charts`; by default all.
    smoothing
        Weight of `ema` over the last values of buckets, from 0 (none) to below 1.
    buckets
        Of each curve: a band from minimum to maximum, under a line of the last values.

    Raises
    ------
    RunNotFound, MetricNotFound
        There is no such run, or none has recorded a metric that is asked for.
    MetricError
        The smoothing is outside of that.

    Examples
    --------
    >>> plot_runs(session, ["minilm/tune"], ["loss"], smoothing=0.9)  # doctest: +SKIP
    """
    check_weight(smoothing)
    curves = charts(session, runs, metrics, buckets=buckets)
    return CurvePlot(curves, find_landmarks(session, {each.run_id for each in curves}), smoothing, log, title)

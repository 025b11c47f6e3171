"""Runs side by side, and curves drawn."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path  # noqa: TC003  Typer evaluates the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arc_halo.cli.output import Json, count, print_json, print_table, say, shown
from arc_halo.cli.train.application import Metrics, References, app

if TYPE_CHECKING:
    from arc_halo.training.comparing import RunComparison
    from arc_halo.training.plots import CurvePlot

_FORMATS = (".png", ".svg", ".pdf")


def _check(path: Path | None) -> Path | None:
    if path is None:
        return None
    if path.suffix not in _FORMATS:
        raise typer.BadParameter(f"{path} must end in {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"{path.parent} is no folder; make it first")
    return path


def _check_smoothing(weight: float) -> float:
    if not 0 <= weight < 1:
        raise typer.BadParameter(f"{weight} must be from 0 to below 1, such as 0.9")
    return weight


Smoothing = Annotated[
    float,
    typer.Option(callback=_check_smoothing, help="Weight of what was before: 0 is none, 0.9 much, below 1."),
]
Logarithmic = Annotated[bool, typer.Option("--log", help="A logarithmic scale of values.")]


def _save(picture: CurvePlot, path: Path) -> None:
    from arc_halo.registry.writing import write_errors

    with write_errors(path):
        picture.save(path)


@app.command("compare")
def compare(
    context: typer.Context,
    runs: References,
    *,
    metric: Metrics = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=_check, help="Draw their curves: .png, .svg or .pdf; needs matplotlib."),
    ] = None,
    smoothing: Smoothing = 0.0,
    log: Logarithmic = False,
    json: Json = False,
) -> None:
    """Show what runs were set to differently, and what each of their metrics reached.

    Example: arc-halo train compare minilm/tune minilm/again --plot both.png
    """
    from arc_halo.training.comparing import compare_runs

    with context.obj.connect() as database, database.session() as session:
        comparison = compare_runs(session, runs, metric)
    if plot is not None:
        _save(comparison.plot(smoothing=smoothing, log=log), plot)
    if json:
        print_json(_fields(comparison))
        return
    _print_settings(comparison)
    _print_figures(comparison, metric)
    if plot is not None:
        say(f"drawn in {shown(str(plot))}")


def _fields(comparison: RunComparison) -> dict[str, Any]:
    from arc_halo.cli.train.shown import run_fields

    return {
        "differences": [asdict(each) for each in comparison.differences],
        "equal_count": comparison.equal_count,
        "runs": [run_fields(run) for run in comparison.runs],
    }


def _print_settings(comparison: RunComparison) -> None:
    names = [run.run for run in comparison.runs]
    if comparison.differences:
        rows = [(each.key, *(_shown(each.values.get(name)) for name in names)) for each in comparison.differences]
        print_table(["set differently", *names], rows)
    say(f"{count(comparison.equal_count, 'setting')} alike")


def _shown(value: Any) -> str:
    """A value, or as much of a digest as tells it from others."""
    text = "" if value is None else str(value)
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text  # noqa: PLR2004  of 32 bytes


def _print_figures(comparison: RunComparison, asked: list[str] | None) -> None:
    from arc_halo.cli.train.shown import at_step

    drawn = {each.metric for each in comparison.curves}
    names = [name for name in comparison.metrics if asked is None or name in drawn]
    rows = []
    for name in names:
        summaries = [run.metrics.get(name) for run in comparison.runs]
        for figure in ("best", "last"):
            value, step = (f"{figure}_value", "last_step" if figure == "last" else f"{figure}_at_step")
            cells = [each and at_step(getattr(each, value), getattr(each, step)) for each in summaries]
            if any(cells):
                rows.append((f"{figure} {name}", *cells))
    if rows:
        headers = [run.run for run in comparison.runs]
        print_table(["reached", *headers], rows, right=headers)


@app.command("plot")
def plot(
    context: typer.Context,
    runs: References,
    *,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", callback=_check, help="Where to: .png, .svg or .pdf."),
    ],
    metric: Metrics = None,
    smoothing: Smoothing = 0.0,
    log: Logarithmic = False,
    buckets: Annotated[int, typer.Option(min=1, help="Of each curve; spikes are in them, however few.")] = 500,
    json: Json = False,
) -> None:
    r"""Draw metrics of one run or several, with checkpoints and where attempts took over.

    Needs matplotlib: pip install 'arc-halo\[plot]'.

    Example: arc-halo train plot minilm/tune --metric loss --smoothing 0.9 -o loss.png
    """
    from arc_halo.training.comparing import main_metrics
    from arc_halo.training.plots import plot_runs
    from arc_halo.training.runs import describe_runs

    with context.obj.connect() as database, database.session() as session:
        described = describe_runs(session, runs)
        chosen = metric or main_metrics(described)
        picture = plot_runs(
            session, [each.id for each in described], chosen, smoothing=smoothing, log=log, buckets=buckets
        )
    _save(picture, output)
    if json:
        print_json(
            {
                "path": str(output),
                "curves": [
                    {"run": each.run, "metric": each.metric, "points": int(each.buckets["point_count"].sum())}
                    for each in picture.curves
                ],
            }
        )
    else:
        say(f"drew {count(len(picture.curves), 'curve')} in {shown(str(output))}")

"""A run followed while it trains: its metrics with their curves, again and again."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from arc_halo.cli.output import Json, console, print_json_line, say, shown
from arc_halo.cli.train.application import Metrics, Reference, app

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.training.runs import RunSummary

_BAR_WIDTH = 40


@dataclass(frozen=True, slots=True)
class View:
    """A run as it is at a moment, with the curves of the metrics that are followed."""

    run: RunSummary
    buckets: Mapping[str, np.ndarray]

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be expected."""
        return self.run.status not in ("pending", "running")


@app.command("tail")
def tail(
    context: typer.Context,
    run: Reference,
    *,
    metric: Metrics = None,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How often to look.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, for scripts.")] = False,
    json: Json = False,
) -> None:
    """Follow a run until it ends: its step, and each metric with its curve.

    On a terminal one picture is kept up to date; elsewhere there is a line for each
    step that is new, and with --json an object on a line of its own.

    Example: arc-halo train tail minilm/tune --metric loss --once
    """
    with context.obj.connect() as database:
        views = _views(database, run, metric, every, is_once=once)
        try:
            if json:
                _print_json(views, is_all=metric is None)
            elif once:
                for view in views:
                    console().print(_picture(view))
            elif console().is_terminal:
                _keep_up(views)
            else:
                _print_lines(views)
        except KeyboardInterrupt:
            return  # the way to leave it


def _views(
    database: Database, reference: str, metrics: list[str] | None, every: float, *, is_once: bool
) -> Iterator[View]:
    """Looks in short transactions, so that nothing is held open in between."""
    from arc_halo.training.naming import find_run

    with database.session() as session:
        found = find_run(session, reference)
    while True:
        with database.session() as session:
            view = _look(session, found.id, metrics)
        yield view
        if is_once or view.is_over:
            return
        time.sleep(every)


def _look(session: Session, run_id: Any, metrics: list[str] | None) -> View:
    from arc_halo.cli.train.shown import SPARKLINE_WIDTH
    from arc_halo.training.comparing import main_metrics
    from arc_halo.training.curves import charts
    from arc_halo.training.runs import describe_runs

    runs = describe_runs(session, [run_id])
    chosen = main_metrics(runs) if metrics is None else metrics
    curves = charts(session, [run_id], chosen, buckets=SPARKLINE_WIDTH) if chosen else []
    return View(runs[0], {each.metric: each.buckets for each in curves})


def _picture(view: View) -> Group:
    from arc_halo.cli.train.looking import metric_rows
    from arc_halo.cli.train.shown import duration, progress, state

    run = view.run
    heard = run.heartbeat_age_seconds if run.attempt_status == "running" else None
    parts: list[Any] = [
        Text.assemble(
            (shown(run.run), "bold"),
            f"  {state(run)}, step {progress(run)}",
            f", attempt {run.attempt_number}" if run.attempt_number else "",
            "" if heard is None else f", heard of {duration(heard)} ago",
        )
    ]
    if run.total_steps:
        done = min(run.current_step / run.total_steps, 1.0)
        left = "" if run.remaining_seconds is None else f", {duration(run.remaining_seconds)} left"
        filled = round(done * _BAR_WIDTH)
        bar = ("━" * filled, "green"), ("─" * (_BAR_WIDTH - filled), "dim")
        parts.append(Text.assemble(*bar, f" {done:.0%}{left}"))
    headers, rows = metric_rows(run, dict(view.buckets))
    if rows:
        parts.append(_table(headers, rows))
    else:
        parts.append(Text("no metrics yet"))
    return Group(*parts)


def _table(headers: list[str], rows: list[tuple[object, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in headers:
        is_text = header in ("metric", "curve")
        table.add_column(header, justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    return table


def _keep_up(views: Iterator[View]) -> None:
    with Live(console=console(), auto_refresh=False) as live:
        for view in views:
            live.update(_picture(view), refresh=True)


def _print_lines(views: Iterator[View]) -> None:
    from arc_halo.cli.train.shown import number, state

    last = None
    for view in views:
        values = {name: view.run.metrics[name] for name in view.buckets if name in view.run.metrics}
        now = (view.run.current_step, state(view.run), {name: each.last_step for name, each in values.items()})
        if now != last:
            told = ", ".join(f"{shown(name)} {number(each.last_value)}" for name, each in values.items())
            say(f"step {view.run.current_step:,}, {state(view.run)}" + (f": {told}" if told else ""))
        last = now


def _print_json(views: Iterator[View], *, is_all: bool) -> None:
    """A line for each look, with all metrics or those that are followed."""
    from arc_halo.cli.train.shown import run_fields

    for view in views:
        fields = run_fields(view.run)
        if not is_all:
            fields["metrics"] = {name: each for name, each in fields["metrics"].items() if name in view.buckets}
        fields["curves"] = {name: each["last_value"].tolist() for name, each in view.buckets.items()}
        print_json_line(fields)

"""Runs looked at: listed, searched, shown with their attempts, metrics and checkpoints."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import json as json_text
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from arc_halo.cli.output import Json, count, print_json, print_table, say, shown, size, some
from arc_halo.cli.train.application import Reference, app

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from arc_halo.schema import TrainingAttempt
    from arc_halo.training.landmarks import CheckpointSummary
    from arc_halo.training.runs import Runs, RunSummary

_MAIN_METRICS = 3
_STATUSES: Final = ("pending", "running", "completed", "failed", "stopped")
_STATUSES_SAID: Final = f"{', '.join(_STATUSES[:-1])} or {_STATUSES[-1]}"


def _check_statuses(statuses: list[str] | None) -> list[str] | None:
    for status in statuses or ():
        if status not in _STATUSES:
            raise typer.BadParameter(f"{status!r} is no status of a run; write {_STATUSES_SAID}")
    return statuses


def _settings(pairs: list[str]) -> dict[str, Any]:
    """``lr=0.1`` by the words of a command line: values are JSON, else text."""
    config = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{pair!r} is no KEY=VALUE, such as lr=0.001 or optimizer.name=adam")
        try:
            config[key] = json_text.loads(value)
        except ValueError:
            config[key] = value
    return config


@app.command("list")
def list_(
    context: typer.Context,
    *,
    model: Annotated[str | None, typer.Option(help="Of this model: NAME, or NAME@VERSION for one version.")] = None,
    name: Annotated[str | None, typer.Option(help="Of this name, in which * stands for anything.")] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(metavar="STATUS", callback=_check_statuses, help=f"{_STATUSES_SAID}; repeatable."),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="With this in the config, such as optimizer.name=adam; repeatable."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION", help="What a metric reached: 'loss < 2', 'best(validation/f1) > 0.9'; repeatable."
        ),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="FIGURE", help="Smallest first: loss, best(loss), max(grad_norm).")
    ] = None,
    descending: Annotated[bool, typer.Option("--descending", help="With --sort: largest first.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 30,
    json: Json = False,
) -> None:
    """List runs, the newest first, or those that were asked for.

    Example: arc-halo train list --where 'best(loss) < 2' --sort 'best(loss)'
    """
    from arc_halo.training.searching import find_runs

    asked = _settings(config or [])
    with context.obj.connect() as database, database.session() as session:
        runs = find_runs(
            session,
            model=model,
            name=name,
            status=status or None,
            config=asked,
            metrics=where or (),
            order_by=sort,
            descending=descending,
            limit=limit,
        )
    if json:
        from arc_halo.cli.train.shown import run_fields

        print_json([run_fields(run) for run in runs])
    elif runs:
        _print_runs(runs)
    else:
        say("no such runs" if model or name or status or config or where else "no runs yet; training_run() makes one")


def _print_runs(runs: Runs) -> None:
    from arc_halo.cli.train.shown import at_step, moment, progress, state

    goals = list(dict.fromkeys(name for run in runs for name, goal in run.metrics.goals.items() if goal))[
        :_MAIN_METRICS
    ]
    rows = []
    for run in runs:
        metrics = [run.metrics.get(name) for name in goals]
        best = [each and at_step(each.best_value, each.best_at_step) for each in metrics]
        counts = (run.attempt_count, run.checkpoint_count)
        rows.append((run.run, state(run), progress(run), *counts, *best, moment(run.heartbeat_at or run.created_at)))
    headers = ["run", "status", "step", "attempts", "checkpoints", *(f"best {name}" for name in goals), "last heard of"]
    print_table(headers, rows, right=["step", "attempts", "checkpoints", *(f"best {name}" for name in goals)])


@app.command("show")
def show(context: typer.Context, run: Reference, *, json: Json = False) -> None:
    """Show a run: its attempts, what its metrics reached, and its config.

    Example: arc-halo train show minilm/tune
    """
    from arc_halo.cli.train.shown import SPARKLINE_WIDTH, run_fields, settings
    from arc_halo.training.curves import charts
    from arc_halo.training.runs import describe_runs

    with context.obj.connect() as database, database.session() as session:
        (described,) = describe_runs(session, [run])
        attempts = _attempts(session, described)
        curves = [] if json else charts(session, [described.id], buckets=SPARKLINE_WIDTH)
    if json:
        print_json(run_fields(described) | {"attempts": [_attempt_fields(each) for each in attempts]})
        return
    _print_run(described)
    _print_attempts(attempts)
    if curves:
        print_metrics(described, {each.metric: each.buckets for each in curves})
    if described.config:
        print_table(["set", "to"], settings(described.config))


def _attempts(session: Session, run: RunSummary) -> Sequence[TrainingAttempt]:
    from sqlalchemy import select

    from arc_halo.schema import TrainingAttempt

    ordered = select(TrainingAttempt).where(TrainingAttempt.training_session_id == run.id)
    return session.scalars(ordered.order_by(TrainingAttempt.attempt_number)).all()


def _attempt_fields(attempt: TrainingAttempt) -> dict[str, Any]:
    names = [each.key for each in type(attempt).__mapper__.column_attrs if each.key != "training_session_id"]
    return {name: getattr(attempt, name) for name in names}


def _print_run(run: RunSummary) -> None:
    from arc_halo.cli.train.shown import progress, state

    say((shown(run.run), "bold"), f"  {run.id}")
    epochs = f", epoch {run.current_epoch:.4g}" + (f" of {run.total_epochs:.4g}" if run.total_epochs else "")
    checkpoints = count(run.checkpoint_count, "checkpoint")
    say(f"{state(run)}, step {progress(run)}{epochs if run.current_epoch or run.total_epochs else ''}, {checkpoints}")
    if run.error:
        say(("error: " + shown(run.error.splitlines()[0]), "red"))
    if run.dataset_name or run.seed is not None:
        data = f"data {shown(run.dataset_name)}" if run.dataset_name else ""
        say(", ".join(filter(None, [data, "" if run.seed is None else f"seed {run.seed}"])))


def _print_attempts(attempts: Sequence[TrainingAttempt]) -> None:
    from arc_halo.cli.train.shown import duration, moment

    if not attempts:
        return
    print_table(
        ["attempt", "goes on from", "status", "where", "started", "for", "verified"],
        [
            (
                str(each.attempt_number),
                "" if each.fork_step is None else f"{each.parent_number} at step {each.fork_step:,}",
                each.status,
                "" if each.host is None else f"{each.host}:{each.pid}",
                moment(each.started_at),
                duration(((each.ended_at or each.heartbeat_at) - each.started_at).total_seconds()),
                each.verified_level or "",
            )
            for each in attempts
        ],
        right=["for"],
    )


def print_metrics(run: RunSummary, buckets: dict[str, Any]) -> None:
    """A line for each metric, with its curve."""
    print_table(*metric_rows(run, buckets), right=["last", "best", "min", "max", "points"])


def metric_rows(run: RunSummary, buckets: dict[str, Any]) -> tuple[list[str], list[tuple[object, ...]]]:
    """Headers and rows: those with a goal first."""
    from arc_halo.cli.train.shown import at_step, sparkline

    chosen = sorted((name for name in run.metrics if name in buckets), key=lambda name: run.metrics[name].goal is None)
    rows: list[tuple[object, ...]] = []
    for name in chosen:
        each = run.metrics[name]
        figures = (
            at_step(each.last_value, each.last_step),
            at_step(each.best_value, each.best_at_step),
            at_step(each.min_value, each.min_at_step),
            at_step(each.max_value, each.max_at_step),
        )
        rows.append((name, sparkline(buckets[name]), *figures, each.point_count))
    return ["metric", "curve", "last", "best", "min", "max", "points"], rows


@app.command("checkpoints")
def checkpoints(context: typer.Context, run: Reference, *, json: Json = False) -> None:
    """List the checkpoints of a run, those behind forks included.

    Example: arc-halo train checkpoints minilm/tune
    """
    from arc_halo.training.landmarks import list_checkpoints
    from arc_halo.training.naming import find_run, run_name

    with context.obj.connect() as database, database.session() as session:
        found = find_run(session, run)
        listed = list_checkpoints(session, found.id)
    if json:
        print_json([asdict(each) for each in listed])
    elif listed:
        _print_checkpoints(listed)
    else:
        say(f"{shown(run_name(found))} has no checkpoints")


def _print_checkpoints(listed: Sequence[CheckpointSummary]) -> None:
    from arc_halo.cli.train.shown import moment, number

    print_table(
        ["step", "epoch", "type", "attempt", "marks", "size", "ranks", "published", "id"],
        [
            (
                each.step,
                number(each.epoch),
                each.checkpoint_type,
                str(each.attempt_number),
                ", ".join(_marks(each)),
                "" if each.nbytes is None else size(each.nbytes),
                each.world_size,
                moment(each.published_at),
                each.id,
            )
            for each in listed
        ],
        right=["step", "epoch", "size", "ranks"],
    )
    if aside := [f"{each.step:,}" for each in listed if not each.is_on_line]:
        say(f"not on the line of the newest attempt: {count(len(aside), 'checkpoint')}, at step {some(aside)}")


def _marks(checkpoint: CheckpointSummary) -> list[str]:
    marks = {
        "best": checkpoint.is_best,
        "pinned": checkpoint.is_pinned,
        checkpoint.status: checkpoint.status != "published",
        "aside": not checkpoint.is_on_line,
    }
    return [name for name, holds in marks.items() if holds]


@app.command("resume-info")
def resume_info(context: typer.Context, run: Reference, *, json: Json = False) -> None:
    """Say from where a run would go on, what is lost by it, and whether it may now.

    Example: arc-halo train resume-info minilm/tune
    """
    from arc_halo.cli.train.resuming import print_resumption, read_resumption

    with context.obj.connect() as database, database.session() as session:
        resumption = read_resumption(session, run)
    if json:
        print_json(resumption.fields())
    else:
        print_resumption(resumption)

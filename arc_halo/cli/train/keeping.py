"""Runs kept small, and deleted."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from typing import Annotated

import typer

from arc_halo.cli.output import Json, confirm, count, print_json, say, shown
from arc_halo.cli.train.application import Reference, app


@app.command("seal")
def seal(
    context: typer.Context,
    run: Reference,
    *,
    keep: Annotated[int, typer.Option(min=0, metavar="POINTS", help="Leave this many of each series as rows.")] = 0,
    json: Json = False,
) -> None:
    """Pack a run's points: a seventh of the space, and charts of millions of them at once.

    Nothing else changes: queries, views and new points find them as before.

    Example: arc-halo train seal minilm/tune
    """
    from arc_halo.training.naming import find_run, run_name
    from arc_halo.training.sealing import seal_points

    with context.obj.connect() as database:
        with database.session() as session:
            name = run_name(find_run(session, run))
        sealed = database.transaction(lambda session: seal_points(session, run, keep_points=keep))
    if json:
        print_json({"run": name, "series_count": sealed.series_count, "point_count": sealed.point_count})
    else:
        say(f"packed {count(sealed.point_count, 'point')} of {sealed.series_count:,} series of {shown(name)}")


@app.command("delete")
def delete(
    context: typer.Context,
    run: Reference,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also one that is being trained.")] = False,
    json: Json = False,
) -> None:
    """Delete a run with its attempts, points and checkpoints; tensors wait for prune.

    Example: arc-halo train delete minilm/tune --yes
    """
    from arc_halo.training.deleting import delete_run
    from arc_halo.training.runs import describe_runs

    with context.obj.connect() as database:
        with database.session() as session:
            (found,) = describe_runs(session, [run])
        points = sum(each.point_count for each in found.metrics.values())
        if not yes:
            told = f"{count(points, 'point')} on its line, {count(found.checkpoint_count, 'checkpoint')}"
            confirm(f"Delete {shown(found.run)} ({told})?")
        deleted = database.transaction(lambda session: delete_run(session, found.id, force=force))
    if json:
        print_json(
            {
                "deleted": found.run,
                "id": found.id,
                "attempt_count": deleted.attempt_count,
                "series_count": deleted.series_count,
                "point_count": deleted.point_count,
                "checkpoint_count": deleted.checkpoint_count,
            }
        )
    else:
        say(
            f"deleted {shown(found.run)}: {count(deleted.attempt_count, 'attempt')}, "
            f"{count(deleted.point_count, 'point')}, {count(deleted.checkpoint_count, 'checkpoint')}; "
            "arc-halo prune frees tensors that nothing else uses"
        )

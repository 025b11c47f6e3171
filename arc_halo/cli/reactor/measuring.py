"""Figures of a reactor over a time."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arc_halo.cli.output import Json, count, print_json, print_table, say, shown
from arc_halo.cli.prune import period
from arc_halo.cli.reactor.application import Name, app

if TYPE_CHECKING:
    from arc_halo.fusion.metrics.window import WindowFigures

_MEANINGS = {
    "quality": "of the joint answers, mean",
    "gain": "above the best single member",
    "oracle_gap": "below the best answer any member gave",
    "coherence": "how much members agree",
    "diversity": "how much they differ",
    "calibration_error": "of scores as probabilities",
    "brier_score": "of scores as probabilities",
}


def moment(text: str) -> dt.datetime:
    """``2026-05-01``, ``2026-05-01T12:00+02:00``, or how long ago: ``7d``, ``90m``. Without a zone, that of here."""
    try:
        return dt.datetime.fromisoformat(text).astimezone()
    except ValueError:
        pass  # then it says how long ago
    try:
        return dt.datetime.now(dt.UTC) - period(text)
    except (typer.BadParameter, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is no moment: write 2026-05-01, 2026-05-01T12:00, or 7d for so long ago"
        ) from None


Moment = typer.Option(parser=moment, metavar="MOMENT", help="2026-05-01, 2026-05-01T12:00, or 7d for so long ago.")


@app.command("metrics")
def metrics(
    context: typer.Context,
    reactor: Name,
    *,
    since: Annotated[dt.datetime | None, Moment] = None,
    until: Annotated[dt.datetime | None, Moment] = None,
    store: Annotated[
        bool, typer.Option("--store", help="Write the figures into reactor_metrics, for later comparison.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what a reactor gained over a time, of all its operations that began then.

    Quality, and all that follows from it, is of operations whose answer is
    known: by --reference of arc-halo reactor run, or by set_quality in
    Python. Replays do not count.

    Example: arc-halo reactor metrics answers --since 7d
    """
    from arc_halo.fusion.metrics.window import measure_window

    with context.obj.connect() as database:
        window = database.transaction(
            lambda session: measure_window(session, reactor, since=since, until=until, store=store)
        )
    if json:
        print_json(window)
    elif not window.operation_count:
        say(f"{shown(reactor)} was asked nothing then")
    else:
        _print(window)


def _print(window: WindowFigures) -> None:
    rate = "" if window.operations_per_second is None else f", {window.operations_per_second:.3g} per second"
    say(
        f"{count(window.operation_count, 'operation')}, {window.completed_count:,} with an answer, "
        f"{window.measured_count:,} of known quality{rate}"
    )
    if window.best_member is not None:
        quality = "" if window.best_quality is None else f", quality {window.best_quality:.4g}"
        say(f"best alone: {shown(window.best_member)}{quality}, over {count(window.best_count, 'operation')}")
    rows: list[tuple[Any, ...]] = [
        (name.replace("_", " "), f"{value:.4g}", meaning)
        for name, meaning in _MEANINGS.items()
        if (value := getattr(window.figures, name)) is not None
    ]
    if window.disagreement is not None:
        rows.append(("disagreement", f"{window.disagreement:.4g}", "pairs of members of which one is right"))
    if window.q is not None:
        rows.append(("Q", f"{window.q:.4g}", "1 where members err together, below 0 where by turns"))
    if rows:
        print_table(["figure", "value", "what it is"], rows, right=["value"])

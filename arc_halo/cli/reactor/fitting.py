"""Weights and thresholds fitted to what a reactor did so far."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from arc_halo.cli.output import Json, count, print_json, print_table, say
from arc_halo.cli.reactor.application import Name, app

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from arc_halo.fusion.learning.fitting import Fit, RouteValue


class What(StrEnum):
    """What is fitted, or looked at."""

    votes = "votes"
    thresholds = "thresholds"
    routes = "routes"


@app.command("fit")
def fit(
    context: typer.Context,
    reactor: Name,
    *,
    what: Annotated[
        What,
        typer.Option(help="votes: the members' weights. thresholds: of a cascade. routes: what other choices give."),
    ],
    least_quality: Annotated[
        float | None, typer.Option(help="Of thresholds: mean quality to reach at the least cost.")
    ] = None,
    most_cost: Annotated[
        float | None, typer.Option(help="Of thresholds: mean cost to keep to at the best quality.")
    ] = None,
    choices: Annotated[int, typer.Option(min=2, help="Of votes: how many answers there are to choose from.")] = 2,
    apply: Annotated[bool, typer.Option("--apply", help="Write what was fitted; otherwise it is only shown.")] = False,
    json: Json = False,
) -> None:
    """Fit a reactor to the operations whose outcomes are known, and show what that is worth on others.

    Half of the questions are fitted to; figures are of the other half, with intervals of 95 %.

    Example: arc-halo reactor fit jury --what votes --apply
    """
    if what is What.routes and apply:
        raise typer.BadParameter("routes are only looked at: there is nothing to apply")
    if what is not What.thresholds and not (least_quality is None and most_cost is None):
        raise typer.BadParameter("--least-quality and --most-cost are of --what thresholds")

    def work(session: Session) -> Fit:
        from arc_halo.fusion.learning.fitting import fit_cascade_thresholds, fit_votes

        if what is What.votes:
            return fit_votes(session, reactor, choices=choices, apply=apply)
        return fit_cascade_thresholds(session, reactor, least_quality=least_quality, most_cost=most_cost, apply=apply)

    with context.obj.connect() as database:
        if what is What.routes:
            with database.session() as session:
                values = _policies(session, reactor)
            if json:
                print_json([asdict(each) | {"is_reliable": each.estimate.is_reliable} for each in values])
            else:
                _print_routes(values)
            return
        fitted = database.transaction(work)
    if json:
        print_json(asdict(fitted))
    else:
        _print_fit(fitted)


def _policies(session: Session, reactor: str) -> list[RouteValue]:
    """The greedy one, and each member that was ever chosen."""
    from arc_halo.errors import FusionError
    from arc_halo.fusion.creating import find_reactor
    from arc_halo.fusion.learning.fitting import ALWAYS, evaluate_routes

    found = [evaluate_routes(session, reactor)]
    for member in find_reactor(session, reactor).members:
        if member.is_enabled:
            try:
                found.append(evaluate_routes(session, reactor, f"{ALWAYS}{member.name}"))
            except FusionError:  # it was never chosen: nothing is known of it
                continue
    return found


def _print_fit(fitted: Fit) -> None:
    for each in fitted.used:
        say(each)
    rows = [(name, f"{fitted.before[name]:.4g}", f"{value:.4g}") for name, value in fitted.after.items()]
    print_table(["member", "before", "after"], rows, right=["before", "after"])
    say(f"on {fitted.held_out_count} other operations:")
    say(f"quality {fitted.quality_before} before, {fitted.quality_after} after: {fitted.gain} more")
    if fitted.cost_before is not None:
        say(f"cost {fitted.cost_before} before, {fitted.cost_after} after")
    say("written" if fitted.is_applied else "nothing was written: --apply writes it")


def _print_routes(values: Sequence[RouteValue]) -> None:
    say(f"mean quality of what was chosen: {values[0].logged}, in {values[0].operation_count} operations")
    if left := values[0].unmeasured_count:
        nothing = values[0].unanswered_count
        say(
            f"left out: {count(left, 'operation')} whose quality is not known, {nothing:,} of them without an answer; "
            "members whose answers are missing look better than they are"
        )
    rows = [
        (
            each.policy,
            str(each.estimate.value),
            f"{each.estimate.effective_count:.0f}",
            "" if each.estimate.is_reliable else "rests on too few",
        )
        for each in values
    ]
    print_table(["policy", "quality", "rests on", ""], rows, right=["rests on"])

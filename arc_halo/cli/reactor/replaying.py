"""An operation run again, and what came out differently."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from arc_halo.cli.output import Json, count, print_json, say, say_first, shown
from arc_halo.cli.reactor.application import Name, OperationId, answering, app, find_operation
from arc_halo.cli.reactor.running import outcome_fields, silent, tell

if TYPE_CHECKING:
    from arc_halo.fusion.replay import Replay


@app.command("replay")
def replay(
    context: typer.Context,
    reactor: Name,
    operation: OperationId,
    *,
    recorded: Annotated[
        bool, typer.Option("--recorded", help="Ask nobody: each call gets the answer that is stored.")
    ] = False,
    json: Json = False,
) -> None:
    """Run an operation again with its input, seed, strategy, config and state, and compare.

    By default members are asked again: what a model of this database says is
    the same, what a server says need not be. With --recorded only the
    decisions are made again, of the same answers. The new operation is
    stored beside the first. Exit code 1 if anything came out differently.

    Example: arc-halo reactor replay answers last --recorded
    """
    from arc_halo.fusion.reactor import Reactor
    from arc_halo.fusion.replay import replay as run_again

    with context.obj.connect() as database, answering(database, tell=silent if json else tell) as members:
        operation_id = database.read(lambda session: find_operation(session, operation, reactor).id)
        again = run_again(Reactor(database, reactor, members), operation_id, members="recorded" if recorded else "live")
    if json:
        names = ("replay_of", "is_equal", "output_is_equal", "trace_is_equal", "answers_are_equal", "changes")
        fields = {name: getattr(again, name) for name in (*names, "differences")}
        print_json(fields | {"outcome": outcome_fields(again.outcome)})
    else:
        _print(again)
    if not again.is_equal:
        raise typer.Exit(1)


def _print(again: Replay) -> None:
    equal = sum(again.answers_are_equal)
    calls = count(len(again.answers_are_equal), "call")
    verdict = "the same" if again.is_equal else "not the same"
    parts = (
        f"output {_same(again.output_is_equal)}, decisions {_same(again.trace_is_equal)}, {equal:,} of {calls} equal"
    )
    say((verdict, "bold"), f": {parts}; operation {again.outcome.operation_id}")
    for change in again.changes:
        say(f"since then: {shown(change)}")
    say_first([Text(shown(each)) for each in again.differences])


def _same(is_equal: bool) -> str:
    return "equal" if is_equal else "different"

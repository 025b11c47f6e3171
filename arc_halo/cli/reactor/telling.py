"""Operations looked at: the newest, those that a model had a part in, and one with its calls."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arc_halo.cli.output import Json, count, print_json, print_table, say, shown
from arc_halo.cli.reactor.application import OperationId, app, find_operation
from arc_halo.cli.reactor.running import decision, seconds_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arc_halo.fusion.operations.history import ModelUse
    from arc_halo.schema import FusionOperation, FusionOperationMember

_LENGTH = 60


@app.command("log")
def log(
    context: typer.Context,
    reactor: Annotated[
        str | None,
        typer.Argument(metavar="[REACTOR]", help="Its operations; with --model of all without it.", show_default=False),
    ] = None,
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 30,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Answers that this version gave: NAME@VERSION, NAME or NAME@ALIAS."),
    ] = None,
    json: Json = False,
) -> None:
    """List operations, the newest first; with --model those that a version had a part in.

    A call keeps the version and the weights that answered, so a version is
    found when its member has another one by now, or it is archived.

    Example: arc-halo reactor log --model demo@1
    """
    from arc_halo.fusion.operations.history import operations_of, operations_with_model

    if reactor is None and model is None:
        raise typer.BadParameter("give a REACTOR, or --model for all reactors")
    with context.obj.connect() as database, database.session() as session:
        if model is not None:
            _uses(operations_with_model(session, model, reactor=reactor, limit=limit), model, json=json)
            return
        rows = operations_of(session, str(reactor), limit=limit)
        if json:
            print_json([_operation_fields(row) for row in rows])
        elif rows:
            _print_operations(rows)
        else:
            say(f"{shown(reactor)} was not asked anything yet; `arc-halo reactor run` does")


def _operation_fields(row: FusionOperation) -> dict[str, Any]:
    hidden = {"tenant_id", "input_vector", "input_dimension"}
    return {each.key: getattr(row, each.key) for each in type(row).__mapper__.column_attrs if each.key not in hidden}


def _print_operations(rows: Sequence[FusionOperation]) -> None:
    from arc_halo.cli.train.shown import moment

    lines = [
        (
            moment(row.started_at),
            row.status if row.replay_of is None else f"{row.status}, a replay",
            row.strategy,
            seconds_of(row.execution_seconds),
            _number(row.score),
            _number(row.quality),
            _short(row.input.get("prompt")),
            _short((row.output or {}).get("text") or row.error),
            row.id,
        )
        for row in rows
    ]
    right = ("took", "score", "quality")
    print_table(["when", "status", "strategy", *right, "prompt", "answer", "operation"], lines, right=right)


def _uses(uses: Sequence[ModelUse], model: str, *, json: bool) -> None:
    from arc_halo.cli.train.shown import moment

    if json:
        print_json([asdict(each) for each in uses])
        return
    if not uses:
        say(f"no answer had a part of {shown(model)}")
        return
    lines = [
        (
            moment(each.started_at),
            each.reactor,
            each.member,
            each.role,
            "yes" if each.is_chosen else "",
            _short(each.input.get("prompt")),
            _short(each.answer.get("text")),
            _short((each.output or {}).get("text")),
            each.operation_id,
        )
        for each in uses
    ]
    headers = ["when", "reactor", "member", "role", "chosen", "prompt", "its answer", "joint answer", "operation"]
    print_table(headers, lines)
    operations = len({each.operation_id for each in uses})
    say(f"{count(len(uses), 'answer')} of {shown(model)} in {count(operations, 'operation')}")


@app.command("show")
def show(context: typer.Context, operation: OperationId, *, json: Json = False) -> None:
    """Show an operation: what was asked, each call of a member with its answer, what was decided, and what came of it.

    Example: arc-halo reactor show last
    """
    with context.obj.connect() as database, database.session() as session:
        row = find_operation(session, operation)
        if json:
            calls = [_call_fields(call) for call in row.members]
            print_json(_operation_fields(row) | {"reactor": row.reactor.name, "calls": calls})
            return
        _print(row)


def _call_fields(call: FusionOperationMember) -> dict[str, Any]:
    hidden = {"operation_id"}
    own = {each.key: getattr(call, each.key) for each in type(call).__mapper__.column_attrs if each.key not in hidden}
    return {"member": call.member.name} | own


def _print(row: FusionOperation) -> None:
    from arc_halo.cli.train.shown import moment

    say((shown(row.reactor.name), "bold"), f"  {row.id}")
    again = "" if row.replay_of is None else f", a replay of {row.replay_of}"
    said = f"{row.status}, {row.strategy}, began {moment(row.started_at)}, took {seconds_of(row.execution_seconds)}"
    seed = "" if row.seed is None else f", seed {row.seed}"
    state = "" if row.state_version is None else f", state {row.state_version}"
    say(f"{said}{seed}{state}{again}")
    _say_text("prompt", row.input.get("prompt"))
    _say_text("reference", row.input.get("reference"))
    _say_text("answer", (row.output or {}).get("text"))
    _say_text("error", row.error)
    figures = [
        f"{name} {_number(value)}"
        for name, value in (("score", row.score), ("quality", row.quality))
        if value is not None
    ]
    if figures:
        say(", ".join(figures))
    if row.members:
        _print_calls(row.members)
    for number, each in enumerate(row.trace):
        say(f"decision {number}: {shown(decision(each))}")


def _say_text(name: str, text: str | None) -> None:
    if text is not None:
        say((f"{name}: ", "bold"), "\n".join(shown(line) for line in text.split("\n")))


def _print_calls(calls: Sequence[FusionOperationMember]) -> None:
    rows = [
        (
            call.position,
            call.member.name,
            call.role,
            call.status,
            seconds_of(call.began_seconds),
            seconds_of(call.latency_seconds),
            (call.prompt_token_count or 0) + (call.generated_token_count or 0) or None,
            call.cached_token_count,
            _number(call.cost),
            _number(call.score),
            _number(call.quality),
            _short((call.answer or {}).get("text") or call.error),
        )
        for call in calls
    ]
    right = ("call", "began", "took", "tokens", "cached", "cost", "score", "quality")
    print_table(["call", "member", "role", "status", *right[1:], "answer"], rows, right=right)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _short(text: str | None) -> str:
    said = " ".join((text or "").split())
    return said if len(said) <= _LENGTH else f"{said[:_LENGTH]}..."

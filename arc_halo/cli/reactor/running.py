"""A question answered by a reactor: what happens on stderr, the answer on stdout."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arc_halo.cli.output import Json, console, count, print_json, shown
from arc_halo.cli.reactor.application import Name, answering, app

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arc_halo.fusion.operations.recording import Outcome
    from arc_halo.fusion.plan import Budget
    from arc_halo.fusion.reactor import Event, Reactor

_LENGTH = 200


@app.command("run")
def run(
    context: typer.Context,
    reactor: Name,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The question; - reads it from stdin.")],
    *,
    seed: Annotated[int | None, typer.Option(min=0, help="Of all chance; drawn and stored unless given.")] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The right answer: quality and gain are measured by it.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="At most so long; in place of the reactor's own.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=0, metavar="COUNT", help="At most so many, of all members.")] = None,
    cost: Annotated[float | None, typer.Option(min=0, help="At most so much, by the endpoints' prices.")] = None,
    json: Json = False,
) -> None:
    """Let a reactor answer a question, and store how it did.

    What happens is on stderr as it happens: who is asked, who answered and
    how long that took, what the strategy decided. The answer is on stdout,
    and a line on stderr says what it took. Members are endpoints of the
    environment and models of this database; the latter need transformers.

    Example: arc-halo reactor run answers "What is a row?" --seconds 20
    """
    from arc_halo.fusion.operations import Input
    from arc_halo.fusion.reactor import Reactor as Running

    given = Input(sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt, reference=reference)
    limits = {"seconds": seconds, "tokens": tokens, "cost": cost}
    telling = silent if json else tell
    with context.obj.connect() as database, answering(database, tell=telling) as members:
        opened = Running(database, reactor, members)
        outcome = _streamed(opened, given, seed, _budget(opened, limits), show=not json)
    _check(outcome, reactor)
    if json:
        print_json(outcome_fields(outcome))
        return
    sys.stdout.write("\n".join(shown(line) for line in outcome.text.split("\n")) + "\n")
    sys.stdout.flush()
    tell(took(outcome))


def silent(sentence: str) -> None:
    """Programs read nothing but the answer."""
    del sentence


def tell(sentence: str) -> None:
    """A line on stderr."""
    console(stderr=True).print(shown(sentence), soft_wrap=True)


def _budget(reactor: Reactor, limits: dict[str, Any]) -> Budget | None:
    """The reactor's own with what was typed in its place."""
    said = {name: value for name, value in limits.items() if value is not None}
    return replace(reactor.plan().config.budget, **said) if said else None


def _streamed(reactor: Reactor, given: Any, seed: int | None, budget: Budget | None, *, show: bool) -> Outcome:
    outcome: Outcome | None = None
    for event in reactor.stream(given, seed=seed, budget=budget):
        outcome = event.outcome
        if show and event.outcome is None:
            tell(told(event))
    assert outcome is not None  # the last event has it
    return outcome


def told(event: Event) -> str:
    """What happened, in a line."""
    details = dict(event.details)
    if event.kind == "noted":
        return f"  {decision(details)}"
    why = f": {_short(str(details['error']))}" if details.get("error") else ""
    return f"{details['member']} {event.kind.replace('_', ' ')}{why}"


def decision(noted: Mapping[str, Any]) -> str:
    """What was noted, in a line: ``chosen: member small, score 0.61``; what is unknown is left out."""
    details = {name: value for name, value in noted.items() if value is not None}
    said = str(details.pop("kind", "noted")).replace("_", " ")
    if said == "edge":
        source, kind, target = (details.pop(name, "") for name in ("source", "interaction", "target"))
        said = f"{source} {str(kind).replace('_', ' ')} {target}"
    facts = ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in details.items())
    return f"{said}: {facts}" if facts else said


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else _short(str(value))


def _short(text: str) -> str:
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]}..."


def _check(outcome: Outcome, reactor: str) -> None:
    from arc_halo.errors import OperationFailed

    if outcome.fused is None:
        raise OperationFailed(
            f"{reactor} gave no answer: {outcome.error}; its calls: `arc-halo reactor show {outcome.operation_id}`",
            outcome.operation_id,
            outcome.status,
        )


def took(outcome: Outcome) -> str:
    """Who answered, and what it took, in a line."""
    answered = [call.member.name for call in outcome.calls if call.is_answered]
    chosen = _chosen(outcome)
    parts = [
        f"{chosen} of {count(len(answered), 'answer')}"
        if chosen
        else f"answered by {', '.join(dict.fromkeys(answered))}",
        f"{count(outcome.token_count, 'token')}, {outcome.cached_token_count:,} from the cache",
        seconds_of(outcome.seconds),
    ]
    parts += [f"cost {outcome.cost:.6g}"] if outcome.cost else []
    parts += [f"score {outcome.score:.4g}"] if outcome.score is not None else []
    parts += [f"quality {outcome.figures.quality:.4g}"] if outcome.figures.quality is not None else []
    return "; ".join([*parts, f"operation {outcome.operation_id}"])


def _chosen(outcome: Outcome) -> str | None:
    if outcome.fused is None or outcome.fused.member_id is None:
        return None
    return next(call.member.name for call in outcome.calls if call.member.id == outcome.fused.member_id)


def seconds_of(value: float | None) -> str:
    """``12.5 ms``, ``3.21 s``."""
    if value is None:
        return ""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def outcome_fields(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON has it."""
    return {
        "operation_id": outcome.operation_id,
        "status": outcome.status,
        "text": None if outcome.fused is None else outcome.fused.text,
        "error": outcome.error,
        "member": _chosen(outcome),
        "score": outcome.score,
        "seed": outcome.seed,
        "seconds": outcome.seconds,
        "token_count": outcome.token_count,
        "cached_token_count": outcome.cached_token_count,
        "cost": outcome.cost,
        "figures": asdict(outcome.figures),
        "calls": [
            {
                "position": call.position,
                "member": call.member.name,
                "role": call.member.role,
                "model": call.member.plan.model,
                "endpoint": call.member.plan.endpoint,
                "status": call.status,
                "text": None if call.answer is None else call.answer.text,
                "error": call.error,
                "score": call.score,
                "quality": call.quality,
                "latency_seconds": call.latency_seconds,
            }
            for call in outcome.calls
        ],
        "trace": list(outcome.trace),
    }

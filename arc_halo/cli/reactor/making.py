"""Reactors made: named, given members, and their members linked."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arc_halo.cli.output import Json, print_json, say, shown
from arc_halo.cli.reactor.application import Name, app

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from arc_halo.schema import ReactorModel

Role = Literal["primary", "secondary", "validator", "router", "judge", "synthesizer", "drafter"]
Interaction = Literal["feeds_into", "validates", "augments"]


def config_of(text: str) -> dict[str, Any]:
    """JSON that was typed, or what is in a file of that name."""
    written = text
    if not text.lstrip().startswith("{"):
        try:
            written = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise typer.BadParameter(f"{text!r} cannot be read: {why}; give a file, or JSON in braces") from None
    try:
        said = json_text.loads(written)
    except ValueError as error:
        raise typer.BadParameter(f"it is no JSON: {error}") from None
    if not isinstance(said, dict):
        raise typer.BadParameter('a config is an object in braces, such as {"options": {}}')
    return said


@app.command("create")
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    *,
    strategy: Annotated[
        str,
        typer.Option(
            metavar="STRATEGY",
            help="How answers become one: ensemble, cascade, parallel, hierarchical, routing, speculative, or one that "
            "a package adds.",
        ),
    ],
    config: Annotated[
        Any,
        typer.Option(
            parser=config_of, metavar="FILE|JSON", help="A file of JSON, or the JSON itself.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    r"""Make a reactor: several models that answer as one, by a strategy.

    The config may have: options, of the strategy; question, such as
    {"max_tokens": 64, "temperature": 0}; budget, of each operation, of
    seconds, tokens and cost; member_seconds; min_answers. An ensemble's
    options are {"method": "vote"} unless you say; also borda, copeland,
    best_of_n, linear_pool, log_pool, gated.

    It has no members yet: arc-halo reactor add gives it some.

    Example: arc-halo reactor create answers --strategy cascade --config '{"options": {"threshold": 0.7}}'
    """
    from arc_halo.fusion.creating import create_reactor

    with context.obj.connect() as database:
        row = database.transaction(lambda session: create_reactor(session, name, strategy, config=config))
    if json:
        print_json({"id": row.id, "name": name, "strategy": strategy, "status": row.status, "config": row.config})
        return
    say((shown(name), "bold"), f": {strategy}, without members; `arc-halo reactor add` gives it some")
    say_of_strategy(strategy, row.config)


def say_of_strategy(strategy: str, config: Mapping[str, Any]) -> None:
    """Say what `arc-halo reactor run` could not do with a reactor."""
    if strategy == "routing" and config.get("options", {}).get("method", "knn") == "knn":
        bandit = json_text.dumps({"options": {"method": "bandit"}})
        say(f"its method knn needs vectors of questions, which only Python gives; to run it here, --config '{bandit}'")


@app.command("add")
def add(
    context: typer.Context,
    reactor: Name,
    member: Annotated[str, typer.Argument(metavar="MEMBER", help="What to call it in this reactor.")],
    *,
    model: Annotated[
        str | None,
        typer.Option(help="The version that answers: NAME@VERSION; of NAME or NAME@ALIAS the one it is now."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A server that answers: ARC_HALO_ENDPOINT_<NAME>_URL and ..._MODEL say which. With --model, too, the "
            "server is asked, and its answers are kept as those of that version.",
        ),
    ] = None,
    role: Annotated[Role, typer.Option(help="What it is asked for.")] = "primary",
    weight: Annotated[float, typer.Option(min=0, help="How much its answer counts.")] = 1.0,
    priority: Annotated[int, typer.Option(min=0, help="Smaller goes first: in a cascade, the cheapest.")] = 0,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Put questions in the template of the model's tokenizer.")
    ] = False,
    json: Json = False,
) -> None:
    """Give a reactor another member: a model of this database, or an endpoint.

    primary and secondary members answer; a judge and a validator say what
    answers are worth; a synthesizer makes one of them; a drafter drafts for a
    primary one. No strategy of this package asks a router: the role is for
    those that others add. hierarchical asks all, as the edges say.

    Example: arc-halo reactor add answers small --model demo@1 --priority 1
    """
    from arc_halo.fusion.creating import add_member

    if chat_template and model is None:
        raise typer.BadParameter("--chat-template is of --model: an endpoint has its own")
    config = {"chat_template": True} if chat_template else None
    values: dict[str, Any] = {"model": model, "endpoint": endpoint, "role": role, "weight": weight, "config": config}
    with context.obj.connect() as database:
        fields = database.transaction(
            lambda session: member_fields(add_member(session, reactor, member, priority=priority, **values))
        )
    if json:
        print_json({"reactor": reactor} | fields)
    else:
        say((shown(member), "bold"), f" of {shown(reactor)}: {about(fields)}")


def about(fields: Mapping[str, Any]) -> str:
    """Who answers for a member, in which role, and how much that counts."""
    endpoint, model = fields["endpoint"], fields["model"]
    who = f"the endpoint {endpoint}{f' for {model}' if model else ''}" if endpoint else model
    return f"{shown(who)}, {fields['role']}, weight {fields['weight']:g}"


def member_fields(member: ReactorModel) -> dict[str, Any]:
    """What is printed of a member."""
    names = ("id", "name", "endpoint", "role", "weight", "priority", "config")
    model = member.model
    return {name: getattr(member, name) for name in names} | {
        "model": None if model is None else f"{model.name}@{model.version}"
    }


@app.command("link")
def link(
    context: typer.Context,
    reactor: Name,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The member that gives.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The member that gets.")],
    *,
    kind: Annotated[Interaction, typer.Option(help="What the first does for the second.")],
    label: Annotated[
        str | None, typer.Option(help="What the text is called in the target's prompt; by default the source's name.")
    ] = None,
    json: Json = False,
) -> None:
    """Draw an edge of the interaction graph, which the strategy hierarchical walks.

    feeds_into: the target goes on from the source's answer; without cycles.
    validates: the source judges the target's answer and may send it back.
    augments: the source's answer is put before the target's question.

    Example: arc-halo reactor link essays critic draft --kind validates
    """
    from arc_halo.fusion.creating import find_reactor, link_members

    config = None if label is None else {"label": label}

    def drawn(session: Session) -> tuple[uuid.UUID, str]:
        edge = link_members(session, reactor, source, target, kind, config=config)
        return edge.id, find_reactor(session, reactor).strategy

    with context.obj.connect() as database:
        edge_id, strategy = database.transaction(drawn)
    if json:
        print_json(
            {"id": edge_id, "reactor": reactor, "source": source, "target": target, "kind": kind, "label": label}
        )
    else:
        say(f"{shown(source)} {kind.replace('_', ' ')} {shown(target)}")
        say_of_edges(strategy)


def say_of_edges(strategy: str) -> None:
    """Say so where edges would not be walked."""
    from arc_halo.fusion.strategies.known import strategies

    own = {name for name, each in strategies().items() if each.__module__.startswith("arc_halo.")}
    if strategy in own - {"hierarchical"}:
        say(f"edges are drawn, and walked by the strategy hierarchical alone; this reactor's is {strategy}")

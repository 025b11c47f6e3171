"""Reactors said as a whole by a file, and changed: their members, edges and status."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from pathlib import Path  # noqa: TC003  Typer evaluates the annotations
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arc_halo.cli.output import Json, count, print_json, say, shown, some
from arc_halo.cli.reactor.application import Name, app
from arc_halo.cli.reactor.making import Interaction, Role, about, member_fields, say_of_edges, say_of_strategy

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

Status = Literal["draft", "active", "paused", "retired"]


@app.command("define")
def define(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A definition, in YAML or JSON.")
    ],
    *,
    json: Json = False,
) -> None:
    r"""Make a reactor as a file says, or make the one of that name what it says.

    Defined again it changes nothing. Members that the file does not name are
    disabled, and stay with all they answered; other edges are taken away.

        name: answers
        strategy: hierarchical
        members:  # in the order of priority
          draft: {model: demo@1}
          final: {endpoint: large, role: synthesizer, weight: 2}
        edges:
          - \[draft, feeds_into, final, A draft]  # with a label, or without

    There may be config and status, as arc-halo reactor create and set-status
    take them; a member may have priority and config, too.

    Example: arc-halo reactor define answers.yml
    """
    from arc_halo.cli.reactor.looking import edges_of, members_of
    from arc_halo.fusion.defining import define_reactor
    from arc_halo.fusion.document import read_definition

    said = read_definition(file)

    def defined(session: Session) -> dict[str, Any]:
        row = define_reactor(
            session,
            said.name,
            said.strategy,
            members=said.members,
            edges=said.edges,
            config=said.config,
            status=said.status,
        )
        own = {each: getattr(row, each) for each in ("id", "name", "strategy", "status", "config", "graph_version")}
        return own | {"members": members_of(row), "edges": edges_of(row)}

    with context.obj.connect() as database:
        told = database.transaction(defined)
    if json:
        print_json(told)
        return
    members = count(len(said.members), "member")
    say((shown(said.name), "bold"), f": {said.strategy}, {said.status}, {members}, {count(len(said.edges), 'edge')}")
    if disabled := [shown(each["name"]) for each in told["members"] if not each["is_enabled"]]:
        say(f"disabled, since it names them not: {some(disabled)}")
    say_of_strategy(said.strategy, said.config)
    if said.edges:
        say_of_edges(said.strategy)


@app.command("change")
def change(
    context: typer.Context,
    reactor: Name,
    member: Annotated[str, typer.Argument(metavar="MEMBER", help="What it is called in this reactor.")],
    *,
    model: Annotated[str | None, typer.Option(help="Another version: NAME@VERSION, NAME or NAME@ALIAS.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another server; of a member with a model, too, it is asked.")
    ] = None,
    role: Annotated[Role | None, typer.Option(help="What it is asked for.")] = None,
    weight: Annotated[float | None, typer.Option(min=0, help="How much its answer counts.")] = None,
    priority: Annotated[int | None, typer.Option(min=0, help="Smaller goes first.")] = None,
    enable: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Ask it, or ask it no more; it stays with its answers.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a member of a reactor something else; what is not said stays as it is.

    "" as --model or --endpoint takes it away. Operations keep the model,
    role and weight that they ran with.

    Example: arc-halo reactor change answers small --weight 0.5
    """
    from arc_halo.fusion.creating import change_member

    names = {"model": model, "endpoint": endpoint, "role": role, "weight": weight, "priority": priority}
    changes: dict[str, Any] = {name: value or None if value == "" else value for name, value in names.items()}
    changes = {name: value for name, value in changes.items() if names[name] is not None}
    if enable is not None:
        changes["enabled"] = enable
    if not changes:
        raise typer.BadParameter("say what is to be another: --weight, --role, --priority, --model, --endpoint, ...")

    def changed(session: Session) -> dict[str, Any]:
        row = change_member(session, reactor, member, **changes)
        return member_fields(row) | {"is_enabled": row.is_enabled}

    with context.obj.connect() as database:
        fields = database.transaction(changed)
    if json:
        print_json({"reactor": reactor} | fields)
        return
    state = f", priority {fields['priority']}{'' if fields['is_enabled'] else ', disabled'}"
    say((shown(member), "bold"), f" of {shown(reactor)}: {about(fields)}{state}")


@app.command("unlink")
def unlink(
    context: typer.Context,
    reactor: Name,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The member that gives.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The member that gets.")],
    *,
    kind: Annotated[Interaction, typer.Option(help="What the first does for the second.")],
    json: Json = False,
) -> None:
    """Take an edge of the interaction graph away.

    Example: arc-halo reactor unlink essays critic draft --kind validates
    """
    from arc_halo.fusion.creating import unlink_members

    with context.obj.connect() as database:
        database.transaction(lambda session: unlink_members(session, reactor, source, target, kind))
    if json:
        print_json({"reactor": reactor, "source": source, "target": target, "kind": kind, "removed": True})
    else:
        say(f"{shown(source)} {kind.replace('_', ' ')} {shown(target)} no more")


@app.command("set-status")
def set_status_of(
    context: typer.Context,
    reactor: Name,
    status: Annotated[Status, typer.Argument(metavar="STATUS", help="draft, active, paused or retired.")],
    *,
    json: Json = False,
) -> None:
    """Activate, pause or retire a reactor: a paused or retired one is not run.

    Operations that run meanwhile end as they began. A retired one stays with
    all that it answered.

    Example: arc-halo reactor set-status answers paused
    """
    from arc_halo.fusion.creating import set_status

    with context.obj.connect() as database:
        database.transaction(lambda session: set_status(session, reactor, status).id)
    if json:
        print_json({"reactor": reactor, "status": status})
    else:
        say((shown(reactor), "bold"), f": {status}")

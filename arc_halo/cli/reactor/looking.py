"""Reactors looked at: how they do, and who is in them."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from arc_halo.cli.output import Json, count, print_json, print_table, say, shown
from arc_halo.cli.reactor.application import app
from arc_halo.cli.reactor.running import seconds_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arc_halo.schema import Reactor, ReactorStatus

_LAST = ("last coherence", "last diversity", "last quality", "last gain")
_FIGURES = ("operations", "errors", "latency p50", "p95", "p99", *_LAST)


@app.command("status")
def status(
    context: typer.Context,
    reactor: Annotated[
        str | None, typer.Argument(metavar="[REACTOR]", help="One of them, with its members.", show_default=False)
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Show how each reactor does: members, operations, latency, and the last figures that were measured.

    errors: operations that failed or timed out. gain: quality above that of
    the best member alone. Figures over a time: arc-halo reactor metrics.

    Example: arc-halo reactor status
    """
    from sqlalchemy import select

    from arc_halo.fusion.creating import find_reactor
    from arc_halo.fusion.operations.history import status_of
    from arc_halo.schema import Reactor, ReactorStatus
    from arc_halo.schema.columns import TENANT_ID

    with context.obj.connect() as database, database.session() as session:
        if reactor is not None:
            _one(find_reactor(session, reactor), status_of(session, reactor), json=json)
            return
        ours = select(ReactorStatus).join(ReactorStatus.reactor).where(Reactor.tenant_id == TENANT_ID)
        rows = session.scalars(ours.order_by(ReactorStatus.name)).all()
        if json:
            print_json([_fields(row) for row in rows])
        elif rows:
            _print_all(rows)
        else:
            say("no reactors yet; `arc-halo reactor create` makes one")


def _fields(row: ReactorStatus) -> dict[str, Any]:
    return {each.key: getattr(row, each.key) for each in type(row).__mapper__.column_attrs}


def _print_all(rows: Sequence[ReactorStatus]) -> None:
    lines = [
        (
            row.name,
            row.strategy,
            row.status,
            ", ".join(f"{number} {role}" for role, number in sorted((row.members_by_role or {}).items())),
            *_figures(row),
        )
        for row in rows
    ]
    print_table(["reactor", "strategy", "status", "members", *_FIGURES], lines, right=_FIGURES)


def _figures(row: ReactorStatus) -> tuple[object, ...]:
    latencies = row.latency_p50_seconds, row.latency_p95_seconds, row.latency_p99_seconds
    known = row.coherence, row.diversity, row.quality, row.gain
    return (
        row.operation_count,
        "" if row.error_rate is None else f"{row.error_rate:.1%}",
        *(seconds_of(each) for each in latencies),
        *("" if each is None else f"{each:.3g}" for each in known),
    )


def _one(row: Reactor, how: ReactorStatus, *, json: bool) -> None:
    members, edges = members_of(row), edges_of(row)
    if json:
        print_json(_fields(how) | {"config": row.config, "members": members, "edges": edges})
        return
    say((shown(row.name), "bold"), f": {row.strategy}, {row.status}, {count(how.operation_count, 'operation')}")
    figures = [(name, value) for name, value in zip(_FIGURES[1:], _figures(how)[1:], strict=True) if value != ""]
    if figures:
        say(", ".join(f"{name} {value}" for name, value in figures))
    if members:
        names = ("name", "role", "weight", "priority", "answers", "enabled")
        shown_rows = [[_cell(each, name) for name in names] for each in members]
        print_table(["member", *names[1:]], shown_rows, right=["weight", "priority"])
    else:
        say("no members yet; `arc-halo reactor add` gives it some")
    for edge in edges:
        label = f" as {shown(edge['label'])}" if edge["label"] else ""
        say(f"{shown(edge['source'])} {edge['kind'].replace('_', ' ')} {shown(edge['target'])}{label}")


def members_of(row: Reactor) -> list[dict[str, Any]]:
    """What is printed of a reactor's members."""
    names = ("name", "role", "weight", "priority", "endpoint", "is_enabled", "config")
    return [
        {name: getattr(member, name) for name in names}
        | {
            "model": None if member.model is None else f"{member.model.name}@{member.model.version}",
            "model_status": None if member.model is None else member.model.status,
        }
        for member in row.members
    ]


def _cell(member: dict[str, Any], name: str) -> str:
    if name == "answers":
        model = member["model"] and f"{member['model']}{' (archived)' if member['model_status'] == 'archived' else ''}"
        endpoint = member["endpoint"] and f"endpoint {member['endpoint']}{f' for {model}' if model else ''}"
        return endpoint or str(model)
    if name == "enabled":
        return "yes" if member["is_enabled"] else "no"
    value = member[name]
    return f"{value:g}" if isinstance(value, float) else str(value)


def edges_of(row: Reactor) -> list[dict[str, Any]]:
    """What is printed of a reactor's edges."""
    names = {member.id: member.name for member in row.members}
    return [
        {
            "source": names[edge.source_id],
            "target": names[edge.target_id],
            "kind": edge.interaction_type,
            "label": edge.config.get("label"),
        }
        for edge in row.interactions
    ]

"""A reactor's graph: in the terminal as text, in a file as a picture."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from pathlib import Path  # noqa: TC003  Typer evaluates the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arc_halo.cli.output import Json, print_json, say, shown
from arc_halo.cli.reactor.application import Name, app

if TYPE_CHECKING:
    from arc_halo.fusion.plan import Plan


def _check(path: Path | None) -> Path | None:
    if path is None:
        return None
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter(f"{path} must end in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"{path.parent} is no folder; make it first")
    return path


@app.command("graph")
def graph(
    context: typer.Context,
    reactor: Name,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", callback=_check, help="Draw it: .svg, .png or .pdf; needs matplotlib."
        ),
    ] = None,
    json: Json = False,
) -> None:
    r"""Draw who is in a reactor, and who feeds, validates and augments whom.

    Members with the same number are asked at once, those of 2 after those
    of 1; members with a dash only validate or augment. In a picture roles
    are colours, kinds of edges are line styles, and weights are widths.

    --output needs matplotlib: pip install 'arc-halo\[plot]'.

    Example: arc-halo reactor graph essays --output essays.svg
    """
    from arc_halo.fusion.drawing import draw_graph
    from arc_halo.fusion.plan import load_plan
    from arc_halo.registry.writing import write_errors

    with context.obj.connect() as database:
        plan = database.read(lambda session: load_plan(session, reactor))
    picture = draw_graph(plan)
    if output is not None:
        with write_errors(output):
            picture.save(output)
    if json:
        print_json(_fields(plan) | {"output": output})
        return
    if output is not None:
        say(f"drawn in {shown(str(output))}")
        return
    for number, line in enumerate(str(picture).split("\n")):
        say((shown(line), "" if number else "bold"))


def _fields(plan: Plan) -> dict[str, Any]:
    """Members by the waves in which they are asked, None beside the flow, and edges by names."""
    from arc_halo.fusion.layout import lay_out

    layout = lay_out(plan)
    waves = {member.id: number + 1 for number, wave in enumerate(layout.waves) for member in wave}
    names = {member.id: member.name for member in plan.members}
    known = ("name", "role", "weight", "priority", "model", "endpoint")
    return {
        "reactor": plan.name,
        "strategy": plan.strategy,
        "graph_version": plan.graph_version,
        "members": [
            {each: getattr(member, each) for each in known} | {"wave": waves.get(member.id)} for member in plan.members
        ],
        "edges": [
            {
                "source": names[edge.source_id],
                "target": names[edge.target_id],
                "kind": edge.kind,
                "label": edge.config.get("label"),
            }
            for edge in plan.edges
            if {edge.source_id, edge.target_id} <= names.keys()
        ],
    }

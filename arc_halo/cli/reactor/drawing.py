"""A reactor's graph: in the terminal as text, in a file as a picture."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from pathlib import Path  # noqa: TC003  Typer evaluates the annotations
from typing import Annotated

import typer

from arc_halo.cli.output import say, shown
from arc_halo.cli.reactor.application import Name, app


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
        picture = draw_graph(database.read(lambda session: load_plan(session, reactor)))
    if output is not None:
        with write_errors(output):
            picture.save(output)
        say(f"drawn in {shown(str(output))}")
        return
    for number, line in enumerate(str(picture).split("\n")):
        say((shown(line), "" if number else "bold"))

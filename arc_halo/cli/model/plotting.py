"""Heat maps that commands draw: where they may go is asked before any work is done."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from arc_halo.registry import HeatMap


def _check(path: Path | None) -> Path | None:
    if path is None:
        return None
    if path.suffix not in (".png", ".html"):
        raise typer.BadParameter(f"{path} must end in .png or .html")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"{path.parent} is no folder; make it first")
    return path


Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE", callback=_check, help="Draw a heat map: .png (needs matplotlib) or .html."),
]


def draw(picture: HeatMap, path: Path) -> None:
    """Write a heat map as what the file's name says."""
    from arc_halo.registry.writing import write_errors

    with write_errors(path):
        if path.suffix == ".html":
            path.write_text(picture.to_html(), encoding="utf-8")
        else:
            picture.save_png(path)

"""``arc-halo attention``: what the heads of a model do."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path  # noqa: TC003  Typer evaluates the annotations
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from arc_halo.cli.output import Json, print_json, print_table, say, shown

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from arc_halo.inference.attention import HeadFigures
    from arc_halo.schema import InferenceSession, Model

app = typer.Typer(no_args_is_help=True, help="Attention: where the heads of a model looked.")

_ID: Final = re.compile(r"[0-9a-fA-F-]{4,36}")
_FIGURES: Final = ("entropy", "distance", "first", "previous", "induction")
_FORMATS: Final = (".png", ".svg", ".pdf")


def _check_figure(figure: str | None) -> str | None:
    if figure is not None and figure not in _FIGURES:
        raise typer.BadParameter(
            f"{figure!r} is no figure of heads; write {', '.join(_FIGURES[:-1])} or {_FIGURES[-1]}"
        )
    return figure


def _check_plot(path: Path | None) -> Path | None:
    if path is None:
        return None
    if path.suffix not in _FORMATS:
        raise typer.BadParameter(f"{path} must end in {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"{path.parent} is no folder; make it first")
    return path


@app.command("show")
def show(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|SESSION",
            help="NAME, NAME@VERSION or NAME@ALIAS; or an inference session: MODEL/NAME, or the beginning of its id.",
        ),
    ],
    *,
    layer: Annotated[
        str | None, typer.Option(metavar="LAYER", help="Only this layer: the number of its block, or its path.")
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="FIGURE", callback=_check_figure, help=f"Largest first: {', '.join(_FIGURES)}. Else by layer."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            callback=_check_plot,
            help="Draw layers by heads: .png, .svg or .pdf; coloured by the figure of --sort, else by entropy.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show what each head does, averaged over the requests whose attention is stored.

    Example: arc-halo attention show gpt2 --sort induction
    """
    from arc_halo.inference.attention.plots import FIGURES, HeadGrid
    from arc_halo.inference.attention.querying import head_figures

    chosen: Any = layer if layer is None or not layer.isdecimal() else int(layer)
    order: Any = sort or "layer"
    with context.obj.connect() as database, database.session() as session:
        heads = head_figures(session, _source(session, source), layer=chosen, sort=order)
    if plot is not None:
        by = sort or "entropy"
        _save(HeadGrid(heads, by, f"{source}: {FIGURES[by]}"), plot)
    if json:
        print_json([asdict(head) for head in heads])
        return
    if not heads:
        say("no attention is stored of it; put_attention() and record_attention() store some")
        return
    _print(heads)
    if plot is not None:
        say(f"drawn in {shown(str(plot))}")


def _source(session: Session, reference: str) -> Model | InferenceSession:
    """A model, or a session. Of what could be one, first is said why it is none: which ids begin so, if several do."""
    from arc_halo.errors import ModelNotFound, SessionNotFound
    from arc_halo.inference.history import find_session
    from arc_halo.registry import find_model

    try:
        return find_model(session, reference)
    except ModelNotFound as unknown:
        if "/" not in reference and not _ID.fullmatch(reference):
            raise
        try:
            return find_session(session, reference)
        except SessionNotFound as error:
            raise SessionNotFound(f"{error}; {unknown}") from None


def _save(picture: Any, path: Path) -> None:
    from arc_halo.registry.writing import write_errors

    with write_errors(path):
        picture.save(path)


def _print(heads: list[HeadFigures]) -> None:
    """A share that is not known, as no token is repeated, is left empty."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    print_table(
        ["layer", "head", "requests", "entropy", "distance", "first", "previous", "induction"],
        [
            (
                head.layer_path,
                head.head_index,
                head.request_count,
                f"{head.entropy:.3f}",
                f"{head.distance:.2f}",
                *map(share, (head.first, head.previous, head.induction)),
            )
            for head in heads
        ],
        right=["head", "requests", *_FIGURES],
    )

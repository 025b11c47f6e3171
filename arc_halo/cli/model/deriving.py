"""Models made smaller: quantised, dequantised, pruned, each as a new version with its errors measured."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arc_halo.cli.description import describe, print_description
from arc_halo.cli.model.application import Reference, app
from arc_halo.cli.model.plotting import Plot, draw
from arc_halo.cli.output import Json, count, print_json, print_table, say, shown, size
from arc_halo.cli.progress import progress_bars

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sqlalchemy.orm import Session

    from arc_halo.schema import Model
    from arc_halo.store import Progress

Name = Annotated[str | None, typer.Option(help="What to call what is made; by default the model's name.")]
Version = Annotated[str | None, typer.Option(help="Any text; by default the next number.")]
Include = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Shell pattern over tensor names, repeatable; by default the matrices of attention and feed-forward.",
    ),
]
Exclude = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Tensors to leave as they are, repeatable.")]
Compression = Annotated[
    Literal["fast", "balanced", "dense", "none"], typer.Option(help="From quick to small; never lossy by itself.")
]
Lines = Annotated[int, typer.Option("--lines", min=0, help="How many tensors to list, the worst first; 0 for all.")]
_FIRST = 10


@app.command("quantize")
def quantize(
    context: typer.Context,
    model: Reference,
    *,
    scheme: Annotated[
        Literal["int8", "fp8", "nf4"],
        typer.Option(help="int8 and fp8: 8 bits and a scale for each row; nf4: 4 bits and a scale for every 64."),
    ] = "int8",
    name: Name = None,
    version: Version = None,
    include: Include = None,
    exclude: Exclude = None,
    compression: Compression = "balanced",
    lines: Lines = _FIRST,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Make a version with 8 or 4 bits for each number of its matrices.

    The model stays; what is not quantised is shared with it. The error of
    each tensor is measured, printed, and kept in the lineage. Floats come
    back by arc-halo model dequantize, as near as the error says.

    Example: arc-halo model quantize minilm --scheme int8
    """
    from arc_halo.registry import quantize_model

    def make(session: Session, progress: Progress | None) -> Model:
        return quantize_model(
            session,
            model,
            scheme,
            name=name,
            version=version,
            include=include,
            exclude=exclude,
            compression=compression,
            progress=progress,
        )

    _derive(context, make, lines=lines, plot=plot, json=json)


@app.command("dequantize")
def dequantize(
    context: typer.Context,
    model: Reference,
    *,
    dtype: Annotated[
        Literal["F16", "BF16", "F32", "F64"] | None,
        typer.Option(help="Of the floats; by default what each tensor was before. F32 loses nothing more."),
    ] = None,
    name: Name = None,
    version: Version = None,
    compression: Compression = "balanced",
    json: Json = False,
) -> None:
    """Make a version with floats again, of one that was quantised.

    Other tools read what is exported of it. What quantising took away does
    not come back: the version before it still has that.

    Example: arc-halo model dequantize minilm@2 --version floats
    """
    from arc_halo.registry import dequantize_model

    def make(session: Session, progress: Progress | None) -> Model:
        return dequantize_model(
            session, model, dtype, name=name, version=version, compression=compression, progress=progress
        )

    _derive(context, make, lines=0, plot=None, json=json)


@app.command("prune")
def prune(
    context: typer.Context,
    model: Reference,
    *,
    sparsity: Annotated[
        float | None, typer.Option(metavar="SHARE", help="The share that is to be zero, between 0 and 1.")
    ] = None,
    structured: Annotated[
        Literal["rows", "heads"] | None, typer.Option(help="Whole rows of matrices, or whole attention heads.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(metavar="N:M", help="Keep N of every M numbers of a row; 2:4 for sparse tensor cores.")
    ] = None,
    scope: Annotated[
        Literal["tensor", "model"], typer.Option(help="Each tensor gets that sparsity, or all of them together.")
    ] = "tensor",
    name: Name = None,
    version: Version = None,
    include: Include = None,
    exclude: Exclude = None,
    compression: Compression = "balanced",
    lines: Lines = _FIRST,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Make a version in which the smallest numbers, rows or heads are zero.

    The model stays, shapes and types do, too. The error of each tensor is
    measured, printed, and kept in the lineage. (To free what no model uses
    any more is another thing: arc-halo prune, without model.)

    Example: arc-halo model prune minilm --sparsity 0.5
    """
    from arc_halo.registry import prune_model

    def make(session: Session, progress: Progress | None) -> Model:
        return prune_model(
            session,
            model,
            sparsity,
            structured=structured,
            pattern=pattern,
            scope=scope,
            name=name,
            version=version,
            include=include,
            exclude=exclude,
            compression=compression,
            progress=progress,
        )

    _derive(context, make, lines=lines, plot=plot, json=json)


def _derive(
    context: typer.Context,
    make: Callable[[Session, Progress | None], Model],
    *,
    lines: int,
    plot: Path | None,
    json: bool,
) -> None:
    """Make the version, and say what came of it."""
    from sqlalchemy import select

    from arc_halo.registry import find_model
    from arc_halo.schema import ModelLineage

    with context.obj.connect() as database, progress_bars(silent=json) as progress:
        made_id = database.transaction(lambda session: make(session, progress).id)
        with database.session() as session:
            made = find_model(session, made_id)
            described = describe(session, made)
            link = session.scalars(select(ModelLineage).where(ModelLineage.child_id == made.id)).one()
            parent = f"{link.parent.name}@{link.parent.version}"
            sizes = {weight.name: weight.tensor.element_count for weight in link.parent.weights}
    recipe = dict(link.recipe)
    tensors = recipe.pop("tensors", {})
    if plot is not None:
        _draw(plot, f"{parent} → {described['name']}@{described['version']}", tensors, sizes)
    if json:
        print_json(described | {"kind": link.kind, "parent": parent, "recipe": recipe, "tensors": tensors})
        return
    print_description(described)
    _print_errors(tensors, lines)
    if recipe.get("heads"):
        pruned = sum(map(len, recipe["heads"].values()))
        say(f"{count(pruned, 'head')} of {count(len(recipe['heads']), 'layer')} pruned")
    if recipe.get("not_finite"):
        say(f"left as they are, for NaN or infinity: {', '.join(shown(each) for each in recipe['not_finite'])}")
    say(f"made from {shown(parent)}, which stays")
    if plot is not None:
        say(f"drawn in {shown(str(plot))}")


def _print_errors(tensors: Mapping[str, Mapping[str, Any]], lines: int) -> None:
    """The tensors that moved farthest, in units of their norms, first."""
    if not tensors:
        return
    has_sizes = any("nbytes_after" in each for each in tensors.values())
    headers = ["RMS", "largest", "relative", "cosine", *(["before", "after"] if has_sizes else ["zeros"])]
    ordered = sorted(tensors.items(), key=lambda item: -_relative(item[1]))
    print_table(
        ["tensor", *headers],
        [(name, *_figures(each)) for name, each in ordered[: lines or None]],
        right=headers,
    )
    if lines and len(ordered) > lines:
        say(f"and {count(len(ordered) - lines, 'tensor')} that moved less; --lines 0 lists all")


def _figures(figures: Mapping[str, Any]) -> list[str]:
    texts = [
        *("" if figures[each] is None else f"{figures[each]:.2e}" for each in ("rms", "max_abs", "relative")),
        "" if figures["cosine"] is None else f"{figures['cosine']:.6f}",
    ]
    if "nbytes_after" in figures:
        return [*texts, size(figures["nbytes_before"]), size(figures["nbytes_after"])]
    return [*texts, f"{figures['zero_fraction']:.1%}"]


def _relative(figures: Mapping[str, Any]) -> float:
    return math.inf if figures["relative"] is None else float(figures["relative"])


def _draw(path: Path, title: str, tensors: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int]) -> None:
    from arc_halo.registry import Distance, TensorDistance
    from arc_halo.registry.heatmap import heat_map

    distances = []
    for name, each in tensors.items():
        if each["rms"] is not None:
            squares = each["rms"] ** 2 * sizes[name]
            before = squares / each["relative"] ** 2 if each["relative"] else 0.0
            moved = Distance(before=before, difference=squares, changed=int(squares > 0), count=sizes[name])
            distances.append(TensorDistance(name, "", is_float=True, distance=moved))
    draw(heat_map(distances, title), path)

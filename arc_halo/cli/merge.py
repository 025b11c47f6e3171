"""``arc-halo merge``: a model made of several, as a recipe says."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from pathlib import Path  # noqa: TC003  Typer evaluates the annotations
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arc_halo.cli.description import describe, print_description
from arc_halo.cli.output import Json, count, print_json, print_table, say, shown, size
from arc_halo.cli.progress import progress_bars

if TYPE_CHECKING:
    from arc_halo.database import Database
    from arc_halo.merging.recipe import Recipe

_FIRST = 10


def merge(
    context: typer.Context,
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", exists=True, dir_okay=False, help="A file in mergekit's YAML.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the merged model.")],
    *,
    version: Annotated[str | None, typer.Option(help="Any text; by default the next number.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="What DARE drops is drawn from it; the same gives the same.")] = 0,
    compression: Annotated[
        Literal["fast", "balanced", "dense", "none"], typer.Option(help="From quick to small; never lossy by itself.")
    ] = "balanced",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check recipe and models, say what would be done, and store nothing.")
    ] = False,
    json: Json = False,
) -> None:
    r"""Make one model of several, as a recipe says.

    The recipe is mergekit's YAML; its models are NAME, NAME@VERSION or
    NAME@ALIAS of this database. Methods: linear, slerp, task_arithmetic,
    ties, dare_ties, dare_linear, breadcrumbs, breadcrumbs_ties.

        merge_method: ties
        base_model: llama@1
        models:
          - model: chat
            parameters: {weight: 0.6}
          - model: code@production
            parameters:
              weight: \[0.2, 0.8]        # from the first layer to the last
        parameters:
          density: 0.3
        dtype: bfloat16

    Layers, config and tokenizer are the base's. The models stay, and the
    lineage of the merged one names them with the recipe and the seed.

    Example: arc-halo merge ties.yml merged --dry-run
    """
    from arc_halo.merging.recipe import Recipe

    read = Recipe.read(recipe)
    with context.obj.connect() as database:
        if dry_run:
            _plan(database, read, name, version, json=json)
            return
        _merge(database, read, name, version=version, seed=seed, compression=compression, json=json)


def _merge(database: Database, recipe: Recipe, name: str, *, json: bool, **options: Any) -> None:
    from sqlalchemy import select

    from arc_halo.registry import find_model, merge_models
    from arc_halo.schema import ModelLineage

    with progress_bars(silent=json) as progress:
        made_id = database.transaction(
            lambda session: merge_models(session, recipe, name, progress=progress, **options).id
        )
    with database.session() as session:
        described = describe(session, find_model(session, made_id))
        links = session.scalars(select(ModelLineage).where(ModelLineage.child_id == made_id)).all()
        parents = sorted(f"{link.parent.name}@{link.parent.version}" for link in links)
        written = links[0].recipe
    if json:
        print_json(described | {"kind": "merge", "parents": parents} | {"recipe": written})
        return
    print_description(described)
    say(f"{count(written['merged'], 'tensor')} merged by {written['method']}, {written['kept']:,} the base's")
    say(f"made from {', '.join(shown(each) for each in parents)}, which stay")


def _plan(database: Database, recipe: Recipe, name: str, version: str | None, *, json: bool) -> None:
    """What would be done, without a number read."""
    from arc_halo.registry.merging import plan_merge

    with database.session() as session:
        plan = plan_merge(session, recipe, name, version)
    if json:
        print_json(plan)
        return
    merged = count(len(plan.tensors), "tensor")
    say(f"would merge {merged} by {plan.method}, and share {len(plan.kept):,} with {plan.base}")
    say(f"models: {', '.join(shown(each) for each in plan.models)}")
    say(f"would read {size(plan.read_nbytes)} and write {size(plan.nbytes)}")
    rows = [
        (each.name, each.dtype, _values(each.shared), "; ".join(f"{who} {_values(said)}" for who, said in own.items()))
        for each, own in ((each, each.own) for each in plan.tensors)
    ]
    if rows:
        print_table(["tensor", "dtype", "all", "each"], rows[:_FIRST])
    if len(rows) > _FIRST:
        say(f"and {count(len(rows) - _FIRST, 'tensor')} more; --json has all")


def _values(values: dict[str, Any]) -> str:
    shown_values = {key: value if isinstance(value, bool) else f"{value:.4g}" for key, value in values.items()}
    return " ".join(f"{key}={value}" for key, value in shown_values.items())

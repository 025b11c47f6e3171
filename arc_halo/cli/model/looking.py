"""Models looked at: listed, drawn as a tree, compared, searched."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from typing import Annotated, Any

import typer

from arc_halo.cli.description import describe, print_description, print_tree
from arc_halo.cli.model.application import Reference, app
from arc_halo.cli.output import Json, count, print_json, print_table, say, size


@app.command("list")
def list_(context: typer.Context, *, json: Json = False) -> None:
    """List all models with their sizes.

    Example: arc-halo model list
    """
    from sqlalchemy import select

    from arc_halo.schema import ModelAlias, ModelArchitecture

    with context.obj.connect() as database, database.session() as session:
        ordered = select(ModelArchitecture).order_by(ModelArchitecture.name, ModelArchitecture.model_id)
        models = session.scalars(ordered).all()
        aliases: dict[object, list[str]] = {}
        for alias in session.scalars(select(ModelAlias).order_by(ModelAlias.alias)):
            aliases.setdefault(alias.model_id, []).append(alias.alias)
    names = [attribute.key for attribute in ModelArchitecture.__mapper__.column_attrs]
    listed = [
        {name: getattr(each, name) for name in names} | {"aliases": aliases.get(each.model_id, [])} for each in models
    ]
    if json:
        print_json(listed)
    elif listed:
        print_table(
            ["name", "version", "aliases", "type", "status", "parameters", "size", "stored"],
            [_listed_row(each) for each in listed],
            right=["parameters", "size", "stored"],
        )
    else:
        say("no models yet; arc-halo model import PATH --name NAME stores one")


def _listed_row(model: dict[str, Any]) -> tuple[object, ...]:
    texts = (model["name"], model["version"], ", ".join(model["aliases"]), model["model_type"], model["status"])
    return (*texts, model["parameter_count"], size(model["nbytes"]), size(model["stored_nbytes"]))


@app.command("show")
def show(context: typer.Context, model: Reference, *, json: Json = False) -> None:
    """Show a model's layer tree, its parameters, and where its bytes went.

    Example: arc-halo model show minilm
    """
    from arc_halo.registry import find_model
    from arc_halo.schema.outline import outline

    with context.obj.connect() as database, database.session() as session:
        found = find_model(session, model)
        described, branches = describe(session, found), outline(session, found.id)
    if json:
        print_json(described | {"layers": branches})
    else:
        print_description(described)
        print_tree("layers", branches)


@app.command("diff")
def diff(context: typer.Context, before: Reference, after: Reference, *, json: Json = False) -> None:
    """Show which tensors differ between two models, and by how many bytes.

    Example: arc-halo model diff minilm@1 minilm@2
    """
    from arc_halo.registry import compare_models

    with context.obj.connect() as database, database.session() as session:
        comparison = compare_models(session, before, after)
    if json:
        print_json(comparison)
        return
    if comparison.differences:
        print_table(
            ["tensor", "change", "size", "changed", "norm before", "norm after"],
            [
                (
                    *(each.name, each.change, size(each.nbytes), size(each.changed_nbytes)),
                    *("" if norm is None else f"{norm:.6g}" for norm in (each.l2_norm_before, each.l2_norm_after)),
                )
                for each in comparison.differences
            ],
            right=["size", "changed", "norm before", "norm after"],
        )
    changed = sum(each.changed_nbytes for each in comparison.differences)
    differ = "differs" if len(comparison.differences) == 1 else "differ"
    say(
        f"{count(len(comparison.differences), 'tensor')} {differ}, by {size(changed)} of chunks; "
        f"{comparison.equal_count:,} are equal ({size(comparison.equal_nbytes)})"
    )


@app.command("similar")
def similar(
    context: typer.Context,
    model: Reference,
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="A token of the model's vocabulary.")],
    *,
    k: Annotated[int, typer.Option("-k", "--count", min=1, help="How many.")] = 10,
    json: Json = False,
) -> None:
    """Find the tokens whose embeddings point where a given one's does.

    Example: arc-halo model similar minilm king -k 6
    """
    from arc_halo.registry import find_similar_tokens

    with context.obj.connect() as database, database.session() as session:
        matches = find_similar_tokens(session, model, token, k)
    if json:
        print_json([{"token": each.label, "row": each.row_index, "similarity": each.similarity} for each in matches])
    else:
        rows = [(each.label, f"{each.similarity:.4f}", str(each.row_index)) for each in matches]
        print_table(["token", "similarity", "id"], rows, right=["similarity", "id"])

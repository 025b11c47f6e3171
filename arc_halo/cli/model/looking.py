"""Models looked at: listed, drawn as a tree, compared, searched."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arc_halo.cli.description import describe, print_description, print_tree
from arc_halo.cli.model.application import Reference, app
from arc_halo.cli.model.plotting import Plot, draw
from arc_halo.cli.output import Json, count, print_json, print_table, say, shown, size, some
from arc_halo.cli.progress import progress_bars

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from arc_halo.registry import Comparison, Distance
    from arc_halo.schema import ModelFamily


@app.command("list")
def list_(context: typer.Context, *, json: Json = False) -> None:
    """List all models with their sizes.

    Example: arc-halo model list
    """
    from sqlalchemy import select

    from arc_halo.schema import ModelAlias, ModelArchitecture, ModelStorage

    with context.obj.connect() as database, database.session() as session:
        ordered = select(ModelArchitecture).order_by(ModelArchitecture.name, ModelArchitecture.model_id)
        models = session.scalars(ordered).all()
        own = dict(session.execute(select(ModelStorage.model_id, ModelStorage.own_nbytes)).all())
        aliases: dict[object, list[str]] = {}
        for alias in session.scalars(select(ModelAlias).order_by(ModelAlias.alias)):
            aliases.setdefault(alias.model_id, []).append(alias.alias)
    names = [attribute.key for attribute in ModelArchitecture.__mapper__.column_attrs]
    listed = [
        {name: getattr(each, name) for name in names}
        | {"aliases": aliases.get(each.model_id, []), "own_nbytes": own[each.model_id]}
        for each in models
    ]
    if json:
        print_json(listed)
    elif listed:
        print_table(
            ["name", "version", "aliases", "type", "status", "parameters", "size", "stored", "own"],
            [_listed_row(each) for each in listed],
            right=["parameters", "size", "stored", "own"],
        )
    else:
        say("no models yet; arc-halo model import PATH --name NAME stores one")


def _listed_row(model: dict[str, Any]) -> tuple[object, ...]:
    texts = (model["name"], model["version"], ", ".join(model["aliases"]), model["model_type"], model["status"])
    sizes = (size(model[each]) for each in ("nbytes", "stored_nbytes", "own_nbytes"))
    return (*texts, model["parameter_count"], *sizes)


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
def diff(
    context: typer.Context,
    before: Reference,
    after: Reference,
    *,
    values: Annotated[
        bool, typer.Option("--values/--digests", help="Read what differs and say how far, or compare digests only.")
    ] = True,
    tensors: Annotated[bool, typer.Option("--tensors", help="A line for each tensor, not for each layer.")] = False,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Show which layers differ between two models, by how many bytes and how far.

    Example: arc-halo model diff minilm@1 minilm@2 --plot moved.html
    """
    from arc_halo.registry import compare_models, find_model

    is_read = values or plot is not None
    with context.obj.connect() as database, database.session() as session, progress_bars(silent=json) as progress:
        comparison = compare_models(session, before, after, values=is_read, progress=progress)
        types = [find_model(session, each).model_type for each in (before, after)]
    if plot is not None:
        draw(comparison.heat_map(), plot)
    if json:
        print_json(_comparison(comparison))
        return
    if tensors or not is_read:
        _print_tensors(comparison)
    else:
        print_layers(comparison)
    say(_strangers(comparison, types) or _summary(comparison))
    for reason, number in Counter(each.reason for each in comparison.differences if each.reason).most_common():
        say(f"{count(number, 'tensor')} not compared number by number: {shown(reason)}")
    if plot is not None:
        say(f"drawn in {shown(str(plot))}")


def _summary(comparison: Comparison) -> str:
    changed = sum(each.changed_nbytes for each in comparison.differences)
    differ = "differs" if len(comparison.differences) == 1 else "differ"
    return (
        f"{count(len(comparison.differences), 'tensor')} {differ}, by {size(changed)} of chunks; "
        f"{comparison.equal_count:,} are equal ({size(comparison.equal_nbytes)})"
    )


def _strangers(comparison: Comparison, types: Sequence[str | None]) -> str | None:
    """What to say of two models without a name in common; None of others."""
    changes = Counter(each.change for each in comparison.differences)
    if comparison.equal_count or changes.keys() != {"removed", "added"}:
        return None
    first, second = (
        shown(name) + (f" ({shown(kind)})" if kind else "")
        for name, kind in zip((comparison.before, comparison.after), types, strict=True)
    )
    return (
        f"no tensor of the two has the same name: {changes['removed']:,} are only in {first}, "
        f"{changes['added']:,} only in {second}"
    )


def _comparison(comparison: Comparison) -> dict[str, Any]:
    distances = [_distance(each.name, each.distance) | {"layer": each.layer} for each in comparison.distances or ()]
    layers = [_distance(name, distance) for name, distance in comparison.layers.items()]
    return asdict(replace(comparison, distances=None)) | {"distances": distances, "layers": layers}


def _distance(name: str, distance: Distance) -> dict[str, Any]:
    parts = ("l2", "relative_l2", "max_abs", "cosine", "changed_share", "unsound")
    return {"name": name} | {each: getattr(distance, each) for each in parts}


def print_layers(comparison: Comparison, lines: int | None = None) -> None:
    """The layers that moved: all in their order, or as many ``lines`` of those that moved farthest."""
    moved = {name: distance for name, distance in comparison.layers.items() if distance.changed}
    farthest = sorted(moved, key=lambda name: -moved[name].relative_l2)[:lines]
    if not moved:
        return
    numbers = ["L2", "relative", "largest", "cosine", "changed"]
    print_table(
        ["layer", *numbers],
        [
            (
                name or "(no layer)",
                f"{distance.l2:.4g}",
                f"{distance.relative_l2:.2e}",
                f"{distance.max_abs:.2e}",
                _cosine(distance),
                _share(distance),
            )
            for name, distance in moved.items()
            if lines is None or name in farthest
        ],
        right=numbers,
    )
    if less := len(moved) - len(farthest):
        say(f"{count(less, 'layer')} moved less")
    if equal := len(comparison.layers) - len(moved):
        say(f"{count(equal, 'layer')} {'is' if equal == 1 else 'are'} equal")
    if unsound := sum(distance.unsound for distance in moved.values()):
        say(f"{count(unsound, 'element')} not finite, left out of the distances")


def _print_tensors(comparison: Comparison) -> None:
    if not comparison.differences:
        return
    distances = {each.name: each.distance for each in comparison.distances or ()}
    print_table(
        ["tensor", "change", "size", "changed", "norm before", "norm after", "L2", "cosine"],
        [
            (
                *(each.name, each.change, size(each.nbytes), size(each.changed_nbytes)),
                *("" if norm is None else f"{norm:.6g}" for norm in (each.l2_norm_before, each.l2_norm_after)),
                *_l2_and_cosine(distances.get(each.name)),
            )
            for each in comparison.differences
        ],
        right=["size", "changed", "norm before", "norm after", "L2", "cosine"],
    )


def _l2_and_cosine(distance: Distance | None) -> tuple[str, str]:
    return ("", "") if distance is None else (f"{distance.l2:.4g}", _cosine(distance))


def _share(distance: Distance) -> str:
    least = 0.001
    return f"<{least:.1%}" if 0 < distance.changed_share < least else f"{distance.changed_share:.1%}"


def _cosine(distance: Distance) -> str:
    return "" if distance.cosine is None else f"{distance.cosine:.6f}"


@app.command("family")
def family(context: typer.Context, model: Reference, *, json: Json = False) -> None:
    """Show what a model was made from and what was made from it, and the bytes that each added.

    Example: arc-halo model family minilm
    """
    from arc_halo.schema import ModelFamily

    with context.obj.connect() as database, database.session() as session:
        members = read_family(session, model)
        untied = untied_versions(session, members)
    names = [attribute.key for attribute in ModelFamily.__mapper__.column_attrs]
    if json:
        print_json([{name: getattr(each, name) for name in names} for each in members])
        return
    print_family(members)
    if untied:
        say(
            f"{shown(some(untied))} {'is' if len(untied) == 1 else 'are'} of a name above, but no lineage ties "
            f"{'it' if len(untied) == 1 else 'them'} in: what is shared counts as added. --parent of arc-halo model "
            "import says what a model was made from; add_lineage() in Python says it later"
        )


def read_family(session: Session, model: uuid.UUID | str) -> Sequence[ModelFamily]:
    """All that was made from what a model was made from, parents before children."""
    from sqlalchemy import select

    from arc_halo.registry import find_model
    from arc_halo.schema import ModelFamily

    mine = select(ModelFamily.root_id).where(ModelFamily.model_id == find_model(session, model).id)
    ordered = select(ModelFamily).where(ModelFamily.root_id.in_(mine)).order_by(ModelFamily.path)
    return session.scalars(ordered).all()


def untied_versions(session: Session, members: Sequence[ModelFamily]) -> list[str]:
    """The versions of the members' names that are not members, oldest first."""
    from sqlalchemy import select

    from arc_halo.schema import Model
    from arc_halo.schema.columns import TENANT_ID

    others = select(Model.name, Model.version).where(
        Model.tenant_id == TENANT_ID,
        Model.name.in_({each.name for each in members}),
        Model.id.not_in([each.model_id for each in members]),
    )
    return [f"{name}@{version}" for name, version in session.execute(others.order_by(Model.created_at, Model.id))]


def print_family(members: Sequence[ModelFamily]) -> None:
    """A line for each, and what they save together."""
    print_table(
        ["model", "made by", "size", "stored", "added"],
        [
            (
                "  " * each.depth + f"{each.name}@{each.version}",
                each.kind or "",
                *(size(nbytes) for nbytes in (each.raw_nbytes, each.stored_nbytes, each.added_nbytes)),
            )
            for each in members
        ],
        right=["size", "stored", "added"],
    )
    raw, added = (sum(getattr(each, what) for each in members) for what in ("raw_nbytes", "added_nbytes"))
    say(f"{size(raw)} as files, {size(added)} stored: {1 - added / raw:.0%} saved" if raw else "no weights")


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

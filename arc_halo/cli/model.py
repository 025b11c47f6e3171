"""``arc-halo model``: whole models into the database, out of it, looked at, compared, searched."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)
# ruff: noqa: TC003  (Typer evaluates the annotations of commands)

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from arc_halo.cli.description import describe, print_description, print_tree
from arc_halo.cli.output import Json, count, print_json, print_table, say, shown, size
from arc_halo.cli.progress import progress_bars
from arc_halo.errors import CorruptionError

app = typer.Typer(no_args_is_help=True, help="Models: import, export, look at, compare, search.")

Reference = Annotated[
    str, typer.Argument(metavar="MODEL", help="NAME (its newest version), NAME@VERSION or NAME@ALIAS.")
]


@app.command("import")
def import_(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A Hugging Face folder, or one .safetensors file.")],
    *,
    name: Annotated[str, typer.Option(help="What to call the model.")],
    version: Annotated[str | None, typer.Option(help="Any text; by default the next number.")] = None,
    compression: Annotated[
        Literal["fast", "balanced", "dense", "none"], typer.Option(help="From quick to small; never lossy.")
    ] = "balanced",
    embeddings: Annotated[
        bool, typer.Option("--embeddings/--no-embeddings", help="Make token embeddings searchable, up to 256 MiB.")
    ] = True,
    json: Json = False,
) -> None:
    """Store a model: its tensors, layers, heads, config and tokenizer.

    What other models have stored already is not stored again. The model
    appears when all of it is there, or not at all.

    Example: arc-halo model import ./all-MiniLM-L6-v2 --name minilm
    """
    from arc_halo.formats.hf import open_model
    from arc_halo.registry import find_model, import_model

    with open_model(path) as folder:
        ignored = folder.ignored
    with context.obj.connect() as database, progress_bars(silent=json) as progress:
        model = database.transaction(
            lambda session: import_model(
                session,
                path,
                name=name,
                version=version,
                compression=compression,
                embeddings=embeddings,
                progress=progress,
            )
        )
        with database.session() as session:
            described = describe(session, find_model(session, model.id)) | {"ignored": ignored}
    if json:
        print_json(described)
        return
    print_description(described)
    if described["other_tensor_count"]:
        say(f"{count(described['other_tensor_count'], 'tensor')} of no known role: in layers of type other")
    if ignored:
        say(f"ignored, as no part of the model: {', '.join(shown(each) for each in ignored)}")


@app.command("export")
def export(
    context: typer.Context,
    model: Reference,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to; made if it is not there.")],
    *,
    json: Json = False,
) -> None:
    """Write a model's files, byte for byte as they were imported.

    Example: arc-halo model export minilm@1 ./minilm
    """
    from arc_halo.registry import export_model

    with context.obj.connect() as database, database.session() as session, progress_bars(silent=json) as progress:
        paths = export_model(session, model, folder, progress=progress)
    sizes = {path: path.stat().st_size for path in paths}
    if json:
        print_json({"folder": folder, "files": [{"path": path, "nbytes": nbytes} for path, nbytes in sizes.items()]})
    else:
        print_table(["file", "size"], [(path, size(nbytes)) for path, nbytes in sizes.items()], right=["size"])


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


@app.command("verify")
def verify(context: typer.Context, model: Reference, *, json: Json = False) -> None:
    """Read every stored byte of a model and compare it with what was written.

    Names each tensor and chunk that is not sound, and exits with 1 then.

    Example: arc-halo model verify minilm
    """
    from arc_halo.registry import check_model, find_model

    with context.obj.connect() as database, database.session() as session, progress_bars(silent=json) as progress:
        found = find_model(session, model)
        name, nbytes = f"{found.name}@{found.version}", found.nbytes
        faults = list(check_model(session, found, progress=progress))
    if json:
        print_json({"model": name, "nbytes": nbytes, "faults": faults})
    for fault in () if json else faults:
        say((shown(name), "bold"), ": ", (shown(fault.message), "red"))
    if faults:
        raise CorruptionError(f"{name} is damaged: {count(len(faults), 'fault')}; import it again from a copy")
    if not json:
        say(f"{shown(name)} is sound: {size(nbytes)} read and compared")


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


@app.command("delete")
def delete(
    context: typer.Context,
    model: Reference,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Delete one version of a model; its chunks wait for prune.

    Example: arc-halo model delete minilm@2 --yes
    """
    from arc_halo.registry import delete_model, find_model, measure_storage

    with context.obj.connect() as database:
        with database.session() as session:
            found = find_model(session, model)
            freed = measure_storage(session, found).own_nbytes
        name = f"{found.name}@{found.version}"
        if not yes:
            typer.confirm(f"Delete {shown(name)} ({size(freed)} that no other model uses)?", abort=True, err=True)
        database.transaction(lambda session: delete_model(session, found.id))
    if json:
        print_json({"deleted": name, "id": found.id, "own_nbytes": freed})
    else:
        say(f"deleted {shown(name)}; arc-halo prune frees its {size(freed)} after the grace period")


@app.command("alias")
def alias(
    context: typer.Context,
    model: Reference,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="What this version is to be called.")],
    *,
    json: Json = False,
) -> None:
    """Let NAME@ALIAS mean this version, whatever it meant before.

    Example: arc-halo model alias minilm@2 production
    """
    from arc_halo.registry import find_model, set_alias

    def point(session: Any) -> Any:
        found = find_model(session, model)
        try:
            set_alias(session, found, alias)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="ALIAS") from error
        return found

    with context.obj.connect() as database:
        found = database.transaction(point)
    if json:
        print_json({"name": found.name, "alias": alias, "version": found.version, "id": found.id})
    else:
        say(f"{shown(found.name)}@{shown(alias)} is {shown(found.name)}@{shown(found.version)}")


@app.command("trainable")
def trainable(
    context: typer.Context,
    model: Reference,
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="Shell pattern over tensor names.")],
    *,
    train: Annotated[bool, typer.Option("--train/--freeze", help="Training may change them, or not.")],
    json: Json = False,
) -> None:
    """Say which tensors training may change.

    Example: arc-halo model trainable minilm 'embeddings.*' --freeze
    """
    from arc_halo.registry import find_model, set_trainable

    with context.obj.connect() as database:
        matched = database.transaction(lambda session: set_trainable(session, model, pattern, train))
        with database.session() as session:
            found = find_model(session, model)
            total, left = found.parameter_count, found.trainable_parameter_count
    if json:
        print_json(
            {"matched": matched, "trainable": train, "parameter_count": total, "trainable_parameter_count": left}
        )
    else:
        say(
            f"{count(matched, 'tensor')} {'may be trained' if train else 'frozen'}; {left:,} of {total:,} are trainable"
        )

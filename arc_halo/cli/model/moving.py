"""Models into the database and out of it."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)
# ruff: noqa: TC003  (Typer evaluates the annotations of commands)

from __future__ import annotations

import uuid
from typing import Annotated, Literal

import typer

from arc_halo.cli.description import describe, print_description
from arc_halo.cli.model.application import Reference, app
from arc_halo.cli.output import Json, count, print_json, print_table, say, shown, size
from arc_halo.cli.progress import progress_bars


@app.command("import")
def import_(
    context: typer.Context,
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help=r"A folder, one .safetensors or .gguf file, or hf://ORG/NAME\[@REVISION] of the hub."
        ),
    ],
    *,
    name: Annotated[str, typer.Option(help="What to call the model.")],
    version: Annotated[str | None, typer.Option(help="Any text; by default the next number.")] = None,
    compression: Annotated[
        Literal["fast", "balanced", "dense", "none"], typer.Option(help="From quick to small; never lossy.")
    ] = "balanced",
    base: Annotated[
        str, typer.Option(metavar="MODEL", help="Store as deltas of this model; auto finds one, none is for none.")
    ] = "auto",
    parent: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model that this one was trained from.")
    ] = None,
    op_id: Annotated[
        uuid.UUID | None, typer.Option(metavar="UUID", help="Made by you: run twice with it, stored once.")
    ] = None,
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
    from arc_halo.formats.hub import HubSnapshot, locate
    from arc_halo.registry import find_model, import_model

    with progress_bars(silent=json) as progress:
        found = locate(path, progress)  # once, and before a transaction that may be tried again
    with open_model(found) as folder:
        ignored = sorted({*folder.ignored, *(found.ignored if isinstance(found, HubSnapshot) else ())})
    with context.obj.connect() as database, progress_bars(silent=json) as progress:
        model = database.transaction(
            lambda session: import_model(
                session,
                found,
                name=name,
                version=version,
                compression=compression,
                base=None if base == "none" else base,
                parent=parent,
                op_id=op_id,
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


ShardSize = Annotated[
    str | None,
    typer.Option("--max-shard-size", metavar="SIZE", help="Lay weights out anew in files of at most this, e.g. 5GB."),
]


@app.command("export")
def export(
    context: typer.Context,
    model: Reference,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where to; made if it is not there.")],
    *,
    max_shard_size: ShardSize = None,
    hub: Annotated[bool, typer.Option("--hub", help="With a model card and .gitattributes, as on the hub.")] = False,
    json: Json = False,
) -> None:
    """Write a model's files, byte for byte as they were imported.

    Example: arc-halo model export minilm@1 ./minilm
    """
    from arc_halo.formats.hub import PREFIX
    from arc_halo.registry import export_model
    from arc_halo.registry.cards import export_repository

    if folder.startswith(PREFIX):
        raise typer.BadParameter(f"nothing is uploaded by an export; say arc-halo model push {model} {folder}")
    limit = _nbytes(max_shard_size)
    write = export_repository if hub else export_model
    with context.obj.connect() as database, database.session() as session, progress_bars(silent=json) as progress:
        paths = write(session, model, folder, max_shard_nbytes=limit, progress=progress)
    sizes = {path: path.stat().st_size for path in paths}
    if json:
        print_json({"folder": folder, "files": [{"path": path, "nbytes": nbytes} for path, nbytes in sizes.items()]})
    else:
        print_table(["file", "size"], [(path, size(nbytes)) for path, nbytes in sizes.items()], right=["size"])


@app.command("push")
def push(
    context: typer.Context,
    model: Reference,
    target: Annotated[str, typer.Argument(metavar="TARGET", help=r"hf://ORG/NAME\[@BRANCH]\[/FOLDER]")],
    *,
    public: Annotated[bool, typer.Option("--public", help="If the repository is made, let all see it.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit; by default which model it is.")] = None,
    max_shard_size: ShardSize = None,
    json: Json = False,
) -> None:
    """Upload a model to the Hugging Face hub, as one commit.

    The token is HF_TOKEN, or that of `hf auth login`. A repository that is not
    there is made, and is private. Safetensors files of before that it has in
    the same folder are deleted by the commit; a GGUF file is added beside.

    Example: arc-halo model push minilm@1 hf://lab/minilm
    """
    from arc_halo.integrations.hub import push_model

    limit = _nbytes(max_shard_size)
    with context.obj.connect() as database, progress_bars(silent=json) as progress:
        pushed = push_model(
            database, model, target, private=not public, message=message, max_shard_nbytes=limit, progress=progress
        )
    if json:
        print_json(pushed)
        return
    say(f"{shown(pushed.repository)}, commit {shown(pushed.commit)}: ", count(len(pushed.added), "file"))
    if pushed.deleted:
        say(f"deleted: {', '.join(shown(each) for each in pushed.deleted)}")


def _nbytes(max_shard_size: str | None) -> int | None:
    from arc_halo.formats.sharding import parse_size

    return None if max_shard_size is None else parse_size(max_shard_size)

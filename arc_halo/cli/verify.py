"""``arc-halo verify`` and ``arc-halo repair``: whether stored bytes are those that were written."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from arc_halo.cli.output import Json, count, print_json, say, say_first, shown, size
from arc_halo.cli.progress import progress_bars
from arc_halo.errors import CorruptionError


def verify(
    context: typer.Context,
    *,
    percent: Annotated[
        float, typer.Option(min=0.001, max=100, help="Share of the chunks to read; always the same ones.")
    ] = 100.0,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, where a check was interrupted.")] = False,
    json: Json = False,
) -> None:
    """Read every stored byte of the database, or a sample, and compare it with what was written.

    Interrupted, it goes on where it was. Exits with 1 if something is not
    sound; arc-halo model verify looks at one model.

    Example: arc-halo verify --percent 5
    """
    from dataclasses import asdict

    from arc_halo.store.verify import verify_database
    from arc_halo.training.checking import check_checkpoints

    with context.obj.connect() as database, progress_bars(silent=json) as progress:
        found = verify_database(database, percent=percent, resume=not restart, progress=progress)
        with database.session() as session:
            checkpoint_count, changed = check_checkpoints(session)
    faults = [*found.faults, *changed]
    if json:
        print_json(asdict(found) | {"checkpoint_count": checkpoint_count, "faults": faults})
    else:
        say_first([Text(shown(fault["message"]), "red") for fault in faults])
    if faults:
        raise CorruptionError(
            f"the database is damaged: {count(len(faults), 'fault')}; arc-halo repair --from COPY puts right "
            "what a copy has"
        )
    if not json:
        say(
            f"sound: {count(found.chunk_count, 'chunk')} ({size(found.nbytes)}), "
            f"{count(found.tensor_count, 'tensor')}, {count(found.model_count, 'model')}, "
            f"{count(checkpoint_count, 'checkpoint')}"
        )


def repair(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Look at this model only; at everything by default.")
    ] = None,
    *,
    copies: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="COPY", help="A folder or file as it was imported, or a model; several times."),
    ] = None,
    json: Json = False,
) -> None:
    """Put damaged chunks right from a copy: a file, another model, or an object of the blob store.

    Nothing is taken but the very bytes that the digest names. Exits with 1
    if a chunk stays damaged.

    Example: arc-halo repair minilm --from ./all-MiniLM-L6-v2
    """
    from arc_halo.registry import repair as repair_chunks

    with context.obj.connect() as database, progress_bars(silent=json) as progress:
        done = database.transaction(
            lambda session: repair_chunks(session, model, copies=copies or [], progress=progress)
        )
    if json:
        print_json(done)
    else:
        say(f"put right {count(len(done.repaired), 'chunk')}")
    if done.missing:
        raise CorruptionError(f"still damaged, for no copy given has the bytes: {count(len(done.missing), 'chunk')}")

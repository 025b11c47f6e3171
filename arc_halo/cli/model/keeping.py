"""Models kept: checked, named, frozen, deleted."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from arc_halo.cli.model.application import Reference, app
from arc_halo.cli.output import Json, confirm, count, print_json, say, say_first, shown, size, some
from arc_halo.cli.progress import progress_bars
from arc_halo.errors import CorruptionError


@app.command("verify")
def verify(context: typer.Context, model: Reference, *, json: Json = False) -> None:
    """Read every stored byte of a model and compare it with what was written.

    Names the first tensors and chunks that are not sound, with --json all,
    and exits with 1 then.

    Example: arc-halo model verify minilm
    """
    from arc_halo.registry import check_model, find_model

    with context.obj.connect() as database, database.session() as session, progress_bars(silent=json) as progress:
        found = find_model(session, model)
        name, nbytes = f"{found.name}@{found.version}", found.nbytes
        faults = list(check_model(session, found, progress=progress))
    if json:
        print_json({"model": name, "nbytes": nbytes, "faults": faults})
    else:
        say_first([Text.assemble((shown(name), "bold"), ": ", (shown(each.message), "red")) for each in faults])
    if faults:
        raise CorruptionError(
            f"{name} is damaged: {count(len(faults), 'fault')}; arc-halo repair {name} --from COPY puts right what a "
            "copy has, or import it again from one"
        )
    if not json:
        say(f"{shown(name)} is sound: {size(nbytes)} read and compared")


@app.command("delete")
def delete(
    context: typer.Context,
    model: Reference,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also one that is being trained.")] = False,
    json: Json = False,
) -> None:
    """Delete one version of a model with its training runs; its chunks wait for prune.

    Example: arc-halo model delete minilm@2 --yes
    """
    from arc_halo.registry import count_runs, delete_model, find_model, measure_storage
    from arc_halo.registry.leaning import measure_leaning

    with context.obj.connect() as database:
        with database.session() as session:
            found = find_model(session, model)
            own, leaning = measure_storage(session, found).own_nbytes, measure_leaning(session, found)
            runs = count_runs(session, found)
        name = f"{found.name}@{found.version}"
        leaned_on, others = leaning.leaned_on_nbytes, shown(some(leaning.leaning_models))
        training = f"{count(runs.run_count, 'training run')} with {count(runs.checkpoint_count, 'checkpoint')}"
        if not yes:
            but = f"; differences of {others} are from {size(leaned_on)} of it" if leaned_on else ""
            also = f", and {training}" if runs.run_count else ""
            confirm(f"Delete {shown(name)} ({size(own)} that no other model uses{but}){also}?")
        database.transaction(lambda session: delete_model(session, found.id, force=force))
    if json:
        print_json(
            {
                "deleted": name,
                "id": found.id,
                "own_nbytes": own,
                "leaned_on_nbytes": leaned_on,
                "run_count": runs.run_count,
                "checkpoint_count": runs.checkpoint_count,
            }
        )
        return
    less = f", less what differences of {others} grow by" if leaned_on else ""
    freed = f"up to {size(own)}" if leaned_on else f"its {size(own)}"
    with_runs = f" with {training}" if runs.run_count else ""
    say(f"deleted {shown(name)}{with_runs}; arc-halo prune frees {freed} after the grace period{less}")


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


@app.command("repack")
def repack(
    context: typer.Context,
    model: Reference,
    *,
    compression: Annotated[
        Literal["fast", "balanced", "dense", "none"], typer.Option(help="From quick to small; never lossy.")
    ] = "balanced",
    base: Annotated[
        str, typer.Option(metavar="MODEL", help="Lean on this model; auto finds one, none is for none.")
    ] = "auto",
    family: Annotated[
        bool, typer.Option("--family", help="Make the model stand for itself, and all of its family lean on it.")
    ] = False,
    json: Json = False,
) -> None:
    """Encode what is stored of a model anew: smaller, quicker, or leaning on another.

    It runs beside readers and writers; what others share is encoded anew
    for them, too.

    Example: arc-halo model repack minilm@1 --compression dense
    """
    from arc_halo.registry import repack_family, repack_model
    from arc_halo.store.blobs import open_store

    with context.obj.connect() as database, progress_bars(silent=json) as progress:
        blobs = None if database.blob_url is None else open_store(database.blob_url)
        if family:
            done = repack_family(database.engine, model, compression=compression, blobs=blobs, progress=progress)
        else:
            chosen = None if base == "none" else base
            done = repack_model(
                database.engine, model, compression=compression, base=chosen, blobs=blobs, progress=progress
            )
    if json:
        print_json(done)
    else:
        say(
            f"encoded {done.changed:,} of {count(done.chunks, 'chunk')} anew: "
            f"{size(done.before_nbytes)} became {size(done.after_nbytes)}"
        )

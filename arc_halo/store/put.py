"""Tensors into the database: hashed, cut, deduplicated, encoded in threads, written in batches."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from arc_halo.codecs.chunking import ChunkLayout, ChunkSpan
from arc_halo.codecs.digest import TensorHasher, chunk_digest, payload_checksum
from arc_halo.codecs.policy import PolicyName, check_policy, encode_chunk
from arc_halo.errors import ConstraintViolation, TransactionConflict
from arc_halo.store import rows
from arc_halo.store.connections import WORKERS, Destination, destination
from arc_halo.store.progress import Meter, Progress
from arc_halo.store.statistics import Statistics, measure

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.store.sources import TensorSource

SMALL_NBYTES = 32 << 20  # held in memory, see `_Upload._gathered`
BATCH_NBYTES = 8 << 20
BATCH_PIECES = 1000
HASH_NBYTES = 1 << 20
ATTEMPTS = 5

_T = TypeVar("_T")
_S = TypeVar("_S")


def put_tensors(
    session: Session,
    sources: Sequence[TensorSource],
    *,
    compression: PolicyName = "balanced",
    progress: Progress | None = None,
) -> list[uuid.UUID]:
    """Store tensors that are not there yet.

    Up to ``SMALL_NBYTES`` everything is part of the caller's transaction. More is uploaded by short transactions on
    a connection of its own: content is addressed by its digest, so an upload that is abandoned is harmless, and
    ``prune`` collects it.

    Parameters
    ----------
    sources
        Read twice where the content is new: once for the digests, once to be stored.
    compression
        Policy for chunks that are new; a chunk that is there keeps the encoding it has.
    progress
        Called between batches.

    Returns
    -------
    list of UUID
        Ids in ``tensor_metadata``, in the order of the sources.

    Raises
    ------
    ConfigurationError
        There is no such policy.
    TransactionConflict
        Content was pruned as fast as it was uploaded, or is hidden by the isolation level.
    """
    check_policy(compression)
    nbytes = sum(source.nbytes for source in sources)
    with (
        ThreadPoolExecutor(WORKERS, "arc-halo-put") as pool,
        destination(session, nbytes, small_nbytes=SMALL_NBYTES) as target,
    ):
        digests = _hash_all(pool, sources, Meter(progress, "hash", nbytes))
        for _attempt in range(ATTEMPTS):
            with target.batch() as connection:
                ids = rows.find_tensors(connection, digests, touch=not target.keeps_locks)
            # Of sources with equal content one is stored.
            missing = {digest: source for digest, source in zip(digests, sources, strict=True) if digest not in ids}
            if not missing:
                return [ids[digest] for digest in digests]
            done = nbytes - sum(source.nbytes for source in missing.values())
            upload = _Upload(target, pool, compression, Meter(progress, "store", nbytes, done))
            stored = dict(zip(missing, upload.run(list(missing.values())), strict=True))
            # An array that changed since it was hashed is named by what was stored of it.
            digests = [stored.get(digest, digest) for digest in digests]
    raise TransactionConflict(
        "tensors vanished while they were stored: run the unit again, READ COMMITTED, and prune with a longer grace"
    )


def _hash_all(pool: ThreadPoolExecutor, sources: Sequence[TensorSource], meter: Meter) -> list[bytes]:
    digests = []
    for source, digest in zip(sources, pool.map(_hash, sources), strict=True):
        digests.append(digest)
        meter.add(source.nbytes)
    return digests


def _hash(source: TensorSource) -> bytes:
    hasher = TensorHasher(source.dtype, source.shape)
    buffer = memoryview(bytearray(min(source.nbytes, HASH_NBYTES)))
    for start in range(0, source.nbytes, HASH_NBYTES):
        part = buffer[: min(len(buffer), source.nbytes - start)]
        source.read_into(start, part)
        hasher.update(part)
    return hasher.digest()


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
        self.statistics = measure(self.raw, self.source.dtype, self.span.offset * 8 // self.source.dtype.bits)
        return self

    def encode(self, policy: PolicyName) -> rows.ChunkRow:
        codec, payload = encode_chunk(self.raw, self.source.dtype, policy)
        checksum = payload_checksum(payload)
        return rows.ChunkRow(self.digest, self.span.nbytes, codec, self.source.dtype.name, checksum, payload)


@dataclass(slots=True)
class _Batch:
    """Consecutive chunks, possibly of several tensors, that are written together."""

    pieces: list[_Piece]
    nbytes: int
    completed: list[rows.TensorRow] = field(default_factory=list)
    encoded: dict[bytes, Future[rows.ChunkRow]] = field(default_factory=dict)


class _Upload:
    """Batches in flight: one is read while the one before is encoded and the one before that is written."""

    def __init__(self, target: Destination, pool: ThreadPoolExecutor, compression: PolicyName, meter: Meter) -> None:
        self._target = target
        self._pool = pool
        self._compression = compression
        self._meter = meter

    def run(self, sources: Iterable[TensorSource]) -> list[bytes]:
        """Store the tensors; returns the digests of the bytes that were stored."""
        digests: list[bytes] = []
        batches = self._encode(self._complete(self._read(_pieces(sources))))
        for batch in self._gathered(batches) if self._target.keeps_locks else batches:
            self._write(batch)
            self._meter.add(batch.nbytes)
            digests += [tensor.digest for tensor in batch.completed]
        return digests

    def _read(self, pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
        def start(batch: list[_Piece]) -> list[Future[_Piece]]:
            return [self._pool.submit(piece.read) for piece in batch]

        for started in _ahead(_batches(pieces), start):
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
        """Hand chunks that are not there to the encoders, while the batch before is being written."""
        in_flight: set[bytes] = set()

        def start(batch: _Batch) -> _Batch:
            nonlocal in_flight
            new = {piece.digest: piece for piece in batch.pieces if piece.span.nbytes}
            batch.pieces = []
            with self._target.batch() as connection:
                present = rows.find_chunks(connection, new, touch=not self._target.keeps_locks)
            for digest in new.keys() - present - in_flight:
                batch.encoded[digest] = self._pool.submit(new[digest].encode, self._compression)
            in_flight = set(batch.encoded) | (in_flight if self._target.keeps_locks else set())
            return batch

        yield from _ahead(batches, start)

    def _gathered(self, batches: Iterable[_Batch]) -> Iterator[_Batch]:
        """All that is small as one batch, held in memory until it is whole.

        Locks that last until the caller commits must be taken in one order by everybody, or two saves of the same
        content deadlock; within one batch they are.
        """
        whole = _Batch([], 0)
        for batch in batches:
            whole.nbytes += batch.nbytes
            whole.completed += batch.completed
            whole.encoded |= batch.encoded
            if whole.nbytes >= SMALL_NBYTES:  # a big save of a transaction that has stored content already
                yield whole
                whole = _Batch([], 0)
        yield whole

    def _write(self, batch: _Batch) -> None:
        chunks = [future.result() for future in batch.encoded.values()]
        for _attempt in range(ATTEMPTS):
            try:
                with self._target.batch(writes=True) as connection:
                    rows.insert(connection, chunks, batch.completed, by_copy=self._target.by_copy)
            except ConstraintViolation as error:
                if error.is_dangling:
                    return  # a chunk was pruned: its tensor stays missing and is uploaded once more
                if not error.is_duplicate:
                    raise
                with self._target.batch() as connection:
                    present = rows.find_chunks(connection, [chunk.digest for chunk in chunks], touch=False)
                chunks = [chunk for chunk in chunks if chunk.digest not in present]
            else:
                return
        raise TransactionConflict("the same chunks are being written by others: run the unit again")


def _pieces(sources: Iterable[TensorSource]) -> Iterator[_Piece]:
    for source in sources:
        layout = ChunkLayout.of(source.dtype, source.shape)
        for span in layout if len(layout) else (ChunkSpan(0, 0, 0, 0),):
            yield _Piece(source, layout, span)


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Group until a batch is full, by bytes or, where tensors are tiny, by number."""
    batch: list[_Piece] = []
    nbytes = 0
    for piece in pieces:
        batch.append(piece)
        nbytes += piece.span.nbytes
        if nbytes >= BATCH_NBYTES or len(batch) >= BATCH_PIECES:
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

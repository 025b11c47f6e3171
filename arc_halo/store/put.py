"""Tensors into the database: hashed, looked up, and what is missing uploaded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

from arc_halo.codecs.digest import TensorHasher
from arc_halo.codecs.policy import MAX_DEPTH, PolicyName, check_policy
from arc_halo.errors import TransactionConflict
from arc_halo.store import rows
from arc_halo.store.bases import Bases
from arc_halo.store.connections import WORKERS, Lent, destination
from arc_halo.store.progress import Meter, Progress
from arc_halo.store.upload import Upload

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.store.sources import TensorSource

SMALL_NBYTES = 32 << 20  # held in memory, see `Upload`
HASH_NBYTES = 1 << 20
ATTEMPTS = 5

ChooseBases: TypeAlias = "Callable[[Sequence[TensorSource]], Mapping[str, uuid.UUID]]"
"""Given the tensors that have to be stored, ids of those that they may be deltas of, by name."""


def no_bases(sources: Sequence[TensorSource]) -> Mapping[str, uuid.UUID]:  # noqa: ARG001, a choice like others
    """Let every tensor stand for itself."""
    return {}


def put_tensors(
    session: Session,
    sources: Sequence[TensorSource],
    *,
    compression: PolicyName = "balanced",
    choose_bases: ChooseBases = no_bases,
    progress: Progress | None = None,
) -> list[uuid.UUID]:
    """Store tensors that are not there yet.

    Up to ``SMALL_NBYTES`` everything is part of the caller's transaction. More is uploaded by short transactions on
    connections of its own: content is addressed by its digest, so an upload that is abandoned is harmless, ``prune``
    collects it, and one that is begun again sends only what is missing.

    Parameters
    ----------
    sources
        Read twice where the content is new: once for the digests, once to be stored.
    compression
        Policy for chunks that are new; a chunk that is there keeps the encoding it has.
    choose_bases
        Asked, under all policies but ``none``, for relatives of the tensors that are not there yet: new chunks are
        stored as differences from theirs where that is smaller. A relative has the same shape but for the length of
        the first axis, and the same element type, or F32 and BF16 meet.
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
            chosen = choose_bases(list(missing.values())) if MAX_DEPTH[compression] else {}
            with target.batch() as connection:
                bases = Bases(Lent(connection, target.blobs), list(missing.values()), chosen, compression)
            upload = Upload(target, pool, compression, bases)
            meter = Meter(progress, "store", nbytes, done)
            stored_digests = upload.run(list(missing.values()), meter, gather_nbytes=SMALL_NBYTES)
            stored = dict(zip(missing, stored_digests, strict=True))
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

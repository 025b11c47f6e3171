"""The stored bytes of a model, or of a whole family, encoded anew: another policy, another base, another root."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from arc_halo.codecs.delta import is_comparable, is_grown
from arc_halo.dtypes import by_name
from arc_halo.registry.bases import AUTO
from arc_halo.registry.lineage import family_of, parents_of
from arc_halo.registry.naming import find_model, named
from arc_halo.schema import Model
from arc_halo.store import Meter, Progress
from arc_halo.store.repack import Repacked, Wish, repack_chunks

if TYPE_CHECKING:
    import uuid

    from sqlalchemy import Engine

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.registry.bases import BaseChoice
    from arc_halo.store.blobs import BlobStore

_WEIGHTS = text("""
SELECT DISTINCT ON (w.name) w.name, t.dtype, t.shape, t.chunk_nbytes,
       array(SELECT c.digest FROM arc_halo.tensor_chunks AS c WHERE c.tensor_id = t.id ORDER BY c.chunk_index)
  FROM arc_halo.model_weights AS w JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
 WHERE w.model_id = :model
""")
_STORED = text("""
SELECT coalesce(sum(stored_nbytes), 0)::bigint FROM arc_halo.tensor_data WHERE digest = ANY(CAST(:digests AS bytea[]))
""")


def repack_model(
    engine: Engine,
    model: Model | uuid.UUID | str,
    *,
    compression: PolicyName = "balanced",
    base: BaseChoice = AUTO,
    blobs: BlobStore | None = None,
    progress: Progress | None = None,
) -> Repacked:
    """Encode the chunks of a model anew, in short transactions of its own, beside readers and writers.

    Chunks that other models use are encoded anew for them, too. A chunk that others lean on takes those along.

    Parameters
    ----------
    compression
        ``none``, ``fast``, ``balanced`` or ``dense``.
    base
        The model to lean on; ``"auto"`` for its parent, else the version before it; None for none.
    blobs
        The blob store, if payloads are in one.

    Raises
    ------
    ModelNotFound
        There is no such model.
    CorruptionError
        Something is not as it was written; it is left so, and what was done before stays done.
    """
    with Session(engine) as session:
        found = find_model(session, model)
        chosen = _base(session, found, base)
        wishes = _wishes(session, found, chosen, compression)
        meter = _meter(session, wishes, progress)
    return repack_chunks(engine, blobs, wishes, meter)


def repack_family(
    engine: Engine,
    root: Model | uuid.UUID | str,
    *,
    compression: PolicyName = "balanced",
    blobs: BlobStore | None = None,
    progress: Progress | None = None,
) -> Repacked:
    """Let one member of a family stand for itself, and all others lean on it.

    The newest as the root loads as fast as if it were alone; the oldest never has to be encoded anew. Parameters and
    errors are those of `repack_model`.
    """
    with Session(engine) as session:
        found = find_model(session, root)
        wishes = _wishes(session, found, None, compression)
        own = {wish.digest for wish in wishes}
        for member in family_of(session, found):
            wishes += [each for each in _wishes(session, member, found, compression) if each.digest not in own]
        meter = _meter(session, wishes, progress)
    return repack_chunks(engine, blobs, wishes, meter)


def _base(session: Session, model: Model, base: BaseChoice) -> Model | None:
    if base is None:
        return None
    if base != AUTO:
        return find_model(session, base)
    parents = parents_of(session, model)
    if parents:
        return parents[0]
    before = select(Model).where(named(Model, model.name), Model.created_at < model.created_at)
    return session.scalars(before.order_by(Model.created_at.desc(), Model.id.desc()).limit(1)).one_or_none()


def _wishes(session: Session, model: Model, base: Model | None, policy: PolicyName) -> list[Wish]:
    """A wish for each chunk, leaning on the one at the same place of the base's tensor of that name."""
    bases = {} if base is None else {row[0]: row[1:] for row in session.execute(_WEIGHTS, {"model": base.id})}
    wishes: dict[bytes, Wish] = {}
    for name, dtype_name, shape, chunk_nbytes, digests in session.execute(_WEIGHTS, {"model": model.id}):
        dtype, beside = by_name(dtype_name), []
        if name in bases:
            base_dtype, base_shape, base_chunk_nbytes, base_digests = (by_name(bases[name][0]), *bases[name][1:])
            is_aligned = chunk_nbytes * base_dtype.component_nbytes == base_chunk_nbytes * dtype.component_nbytes
            if is_aligned and is_grown(base_shape, shape) and is_comparable(base_dtype, dtype):
                beside = base_digests
        for index, digest in enumerate(digests):
            if index < len(beside) and beside[index] != digest:
                wishes.setdefault(digest, Wish(digest, policy, beside[index], base_dtype))
            else:
                wishes.setdefault(digest, Wish(digest, policy))
    return list(wishes.values())


def _meter(session: Session, wishes: list[Wish], progress: Progress | None) -> Meter:
    return Meter(progress, "repack", session.scalar(_STORED, {"digests": [wish.digest for wish in wishes]}) or 0)

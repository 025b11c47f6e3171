"""What binds rows together: the seal of a tensor over its chunks, the root of a model over its tensors."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from blake3 import blake3
from sqlalchemy import select, update

from arc_halo.codecs.digest import manifest_root
from arc_halo.dtypes import by_name
from arc_halo.errors import TensorError
from arc_halo.schema import Model, ModelWeight, Tensor

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

_SEAL_CONTEXT = "arc-halo 2026-11 tensor seal"


def seal(digest: bytes, dtype: str, shape: Sequence[int], chunk_nbytes: int, chunk_digests: Iterable[bytes]) -> bytes:
    """BLAKE3-256 that binds a tensor's digest and layout to the digests of its chunks, in order.

    A read that touches two chunks can so be sure that these are the right two, without reading the others.
    """
    hasher = blake3(derive_key_context=_SEAL_CONTEXT)
    hasher.update(digest)
    hasher.update(dtype.encode() + b"\0")
    hasher.update(struct.pack(f"<{len(shape) + 2}Q", len(shape), *shape, chunk_nbytes))
    for chunk_digest in chunk_digests:
        hasher.update(chunk_digest)
    return hasher.digest()


def compute_weights_digest(session: Session, model_id: uuid.UUID) -> bytes:
    """The Merkle root over the model's manifest as it stands in the database.

    Raises
    ------
    TensorError, struct.error
        A row has a type or shape that no tensor has.
    """
    rows = session.execute(
        select(ModelWeight.name, Tensor.dtype, Tensor.shape, Tensor.digest)
        .join(Tensor, Tensor.id == ModelWeight.tensor_id)
        .where(ModelWeight.model_id == model_id)
    )
    return manifest_root((name, by_name(dtype), shape, digest) for name, dtype, shape, digest in rows)


def set_weights_digest(session: Session, model_id: uuid.UUID) -> bytes:
    """Compute the model's ``weights_digest`` and store it; it stays until a weight changes.

    The trigger that forgets it updates the model's row, so holding that row keeps weights still in the meantime.
    """
    session.execute(select(Model.id).where(Model.id == model_id).with_for_update())
    root = compute_weights_digest(session, model_id)
    session.execute(update(Model).where(Model.id == model_id).values(weights_digest=root))
    return root


def explain_weights_digest(session: Session, model_id: uuid.UUID) -> str | None:
    """What is wrong with the ``weights_digest`` that is stored; None if nothing is, or none is stored."""
    stored = session.scalar(select(Model.weights_digest).where(Model.id == model_id))
    try:
        if stored is None or stored == compute_weights_digest(session, model_id):
            return None
    except (TensorError, struct.error):
        pass
    return "weights_digest does not belong to these weights: rows of model_weights or tensor_metadata were changed"

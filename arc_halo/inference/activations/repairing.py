"""Damaged activations put right by computing them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from arc_halo.schema.columns import TENANT_ID
from arc_halo.store import ArraySource
from arc_halo.store.blobs import blob_store
from arc_halo.store.repair import repair_chunks

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping

    import numpy as np
    from sqlalchemy.orm import Session

_CHUNKS: Final = text("""
SELECT DISTINCT c.digest FROM arc_halo.tensor_chunks AS c
 WHERE c.tenant_id = :tenant_id AND c.tensor_id = ANY(CAST(:tensor_ids AS uuid[]))
""")


@dataclass(frozen=True, slots=True)
class _Computed:
    """What was computed, as a copy of what is stored."""

    arrays: Mapping[str, np.ndarray]

    def source(self, name: str) -> ArraySource | None:
        """The output of that hook point."""
        return ArraySource(name, self.arrays[name]) if name in self.arrays else None


def repair_activations(session: Session, computed: Mapping[str, tuple[uuid.UUID, np.ndarray]]) -> None:
    """Put the damaged chunks of tensors right, of which the output was computed again with the same bytes.

    A computation that does not repeat itself to the bit made another tensor, and repairs nothing.
    """
    if not computed:
        return
    asked = {"tenant_id": TENANT_ID, "tensor_ids": [tensor_id for tensor_id, _ in computed.values()]}
    digests = session.scalars(_CHUNKS, asked).all()
    copy = _Computed({name: array for name, (_, array) in computed.items()})
    repair_chunks(session, digests, [copy], blob_store(session))

"""The stored tensor nearest to one that is about to be stored, by a sketch of its values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from arc_halo.codecs.delta import comparable_types
from arc_halo.schema.columns import TENANT_ID
from arc_halo.schema.tensors import RELATIVES_NBYTES
from arc_halo.store.connections import Reading
from arc_halo.store.statistics import Statistics, measure

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.store.sources import TensorSource

MAX_DISTANCE: Final = 0.2
"""Cosine distance of sketches beyond which tensors are strangers: of unrelated ones it is 1 +- 0.125."""

_PIECE_NBYTES: Final = 1 << 20  # or the whole blocks in it
# A relative may have any length of the first axis: a vocabulary grows. The index is asked for more than one, since it
# knows nothing of types and shapes.
_NEAREST = """
SELECT u.place, n.id
  FROM unnest(%(sketches)b::text[], %(tails)b::text[], %(types)b::text[]) WITH ORDINALITY
       AS u (sketch, tail, types, place)
 CROSS JOIN LATERAL (
    SELECT t.id, t.sketch OPERATOR(public.<=>) u.sketch::public.vector AS distance
      FROM arc_halo.tensor_metadata AS t
     WHERE t.tenant_id = %(tenant)s AND t.nbytes >= {floor} AND t.dtype = ANY(u.types::text[])
       AND array_length(t.shape, 1) IS NOT NULL AND t.shape[2:] = u.tail::bigint[]
     ORDER BY t.sketch OPERATOR(public.<=>) u.sketch::public.vector LIMIT 1) AS n
 WHERE n.distance < %(distance)s
"""

# For these statements alone: the rest of the transaction is the caller's.
_SCAN_ON = """
SELECT current_setting('hnsw.iterative_scan', true), set_config('hnsw.iterative_scan', 'strict_order', true)
"""
_SCAN_BACK = "SELECT set_config('hnsw.iterative_scan', %s, true)"


def find_relatives(session: Session, sources: Sequence[TensorSource]) -> dict[str, uuid.UUID]:
    """Stored tensors that those given may be deltas of, by the names of the sources that have one.

    Each source is read once for its sketch. What is smaller than `RELATIVES_NBYTES`, or has no numeric type, is left
    out; a relative differs in no axis but the first.
    """
    sketched = [(source, sketch) for source in sources if (sketch := _sketch(source)) is not None]
    if not sketched:
        return {}
    parameters = {
        "sketches": ["[" + ",".join(map(repr, sketch.tolist())) + "]" for _, sketch in sketched],
        "tails": [_as_array(source.shape[1:]) for source, _ in sketched],
        "types": [_as_array(comparable_types(source.dtype)) for source, _ in sketched],
        "tenant": TENANT_ID,
        "distance": MAX_DISTANCE,
    }
    with Reading(session)() as connection, connection.cursor(binary=True) as cursor:
        ((before, _),) = cursor.execute(_SCAN_ON).fetchall()
        found = cursor.execute(_NEAREST.format(floor=RELATIVES_NBYTES), parameters).fetchall()
        cursor.execute(_SCAN_BACK, (before or "off",))
    return {sketched[place - 1][0].name: tensor_id for place, tensor_id in found}


def _sketch(source: TensorSource) -> np.ndarray | None:
    if source.nbytes < RELATIVES_NBYTES or not source.dtype.is_float or not source.shape:
        return None
    known = Statistics()
    width = max(source.dtype.bits // 8, 1)
    piece_nbytes = _PIECE_NBYTES // width * width
    buffer = memoryview(bytearray(piece_nbytes))
    for start in range(0, source.nbytes, piece_nbytes):
        part = buffer[: min(piece_nbytes, source.nbytes - start)]
        source.read_into(start, part)
        known.merge(measure(part, source.dtype, source.dtype.elements(start)))
    return known.sketch_of_unit_length()


def _as_array(values: Sequence[Any]) -> str:
    return "{" + ",".join(map(str, values)) + "}"

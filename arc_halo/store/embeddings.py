"""Vectors into the database: rows of embedding matrices, and vectors of any other owner."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from arc_halo.errors import ConstraintViolation
from arc_halo.schema.columns import TENANT_ID
from arc_halo.store.bulk import EMBEDDINGS
from arc_halo.store.connections import Lent, destination
from arc_halo.store.get import Part, Wanted, iter_pieces, load_manifests
from arc_halo.store.put import SMALL_NBYTES
from arc_halo.store.statistics import as_float

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.store.connections import Connect
    from arc_halo.store.progress import Meter

ROWS_PER_COPY = 2000

_STORED = """
SELECT EXISTS (SELECT FROM arc_halo.embeddings
                WHERE tenant_id = %(tenant)s AND kind = %(kind)s AND owner_id = %(owner)s),
       EXISTS (SELECT FROM arc_halo.embeddings
                WHERE tenant_id = %(tenant)s AND kind = %(kind)s AND owner_id = %(owner)s AND label IS NOT NULL)
"""
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%(kind)s || %(owner)s::text, 0))"
_LABEL = """
UPDATE arc_halo.embeddings AS e SET label = u.label
  FROM unnest(%(rows)b::bigint[], %(labels)b::text[]) AS u (row, label)
 WHERE e.tenant_id = %(tenant)s AND e.kind = %(kind)s AND e.owner_id = %(owner)s AND e.row_index = u.row
   AND e.label IS NULL
"""


def put_matrix_rows(
    session: Session,
    wanted: Wanted,
    kind: str,
    labels: Callable[[], Mapping[int, str]],
    *,
    upload_nbytes: int,
    meter: Meter,
) -> None:
    """Store each row of an embedding matrix as a vector that belongs to the tensor, once for all its models.

    Rows are those of the stored tensor, not of the file it came from, which may have changed. Rows with NaN or
    infinite elements have no place in a metric space and are left out. Labels are those of the first tokenizer that
    came with the tensor.

    Parameters
    ----------
    wanted
        A stored tensor of two axes and a real element type.
    labels
        Gives row number to text, asked only when it is needed; rows without one get none.
    upload_nbytes
        Size of the whole import the matrix belongs to: what was uploaded by short transactions is embedded so, too.
    """
    where = {"tenant": TENANT_ID, "kind": kind, "owner": wanted.tensor_id}
    with destination(session, upload_nbytes, small_nbytes=SMALL_NBYTES) as target:
        try:
            with target.batch(writes=True) as connection:
                has_rows, has_labels = connection.execute(_STORED, where).fetchone() or (False, False)
                if not has_rows:
                    rows = _matrix_rows(Lent(connection, target.blobs), wanted, kind, labels(), meter)
                    # All or nothing, so that the first row stands for all of them.
                    while batch := list(islice(rows, ROWS_PER_COPY)):
                        EMBEDDINGS.insert(connection, batch, by_copy=target.by_copy)
                    return
                if not has_labels and (texts := labels()):
                    connection.execute(_LOCK, where)
                    connection.execute(_LABEL, where | {"rows": list(texts), "labels": list(texts.values())})
        except ConstraintViolation as error:
            if not error.is_duplicate:
                raise  # else another import of the same tensor was faster
    meter.add(wanted.nbytes)


def _matrix_rows(
    connect: Connect, wanted: Wanted, kind: str, labels: Mapping[int, str], meter: Meter
) -> Iterator[tuple[Any, ...]]:
    (manifest,) = load_manifests(connect, [wanted])
    dtype, dimension = manifest.layout.dtype, manifest.layout.shape[1]
    for piece in iter_pieces(connect, [Part(manifest, range(len(manifest.layout)))]):
        matrix = as_float(piece.raw, dtype).reshape(-1, dimension).astype(np.float32, copy=False)
        first_row = manifest.layout[piece.index].first_row
        for offset in np.flatnonzero(np.isfinite(matrix).all(axis=1)).tolist():
            row, owner = first_row + offset, wanted.tensor_id
            yield (TENANT_ID, kind, owner, row, owner, labels.get(row), dimension, matrix[offset])
        meter.add(len(piece.raw))


def put_vectors(
    session: Session,
    kind: str,
    owner_id: uuid.UUID,
    vectors: np.ndarray,
    *,
    labels: Sequence[str | None],
    first_row: int,
) -> None:
    """Store vectors of an owner that is no tensor, in the caller's transaction."""
    rows: Iterable[tuple[Any, ...]] = (
        (TENANT_ID, kind, owner_id, first_row + i, None, label, vectors.shape[1], vector)
        for i, (vector, label) in enumerate(zip(vectors, labels, strict=True))
    )
    with destination(session, 0, small_nbytes=SMALL_NBYTES) as target, target.batch(writes=True) as connection:
        EMBEDDINGS.insert(connection, list(rows), by_copy=target.by_copy)

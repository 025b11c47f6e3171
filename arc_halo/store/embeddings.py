"""Vectors into the database: rows of embedding matrices, and vectors of any other owner."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from arc_halo.errors import ConstraintViolation
from arc_halo.store.bulk import EMBEDDINGS
from arc_halo.store.connections import destination
from arc_halo.store.put import SMALL_NBYTES, UNIQUE_VIOLATION
from arc_halo.store.rows import TENANT_ID

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.store.progress import Meter
    from arc_halo.store.sources import TensorSource

READ_NBYTES = 1 << 20
ROWS_PER_COPY = 2000

_EXISTS = "SELECT EXISTS (SELECT FROM arc_halo.embeddings WHERE tenant_id = %s AND kind = %s AND owner_id = %s)"


def put_matrix_rows(
    session: Session,
    source: TensorSource,
    tensor_id: uuid.UUID,
    kind: str,
    labels: Callable[[], Mapping[int, str]],
    *,
    upload_nbytes: int,
    meter: Meter,
) -> bool:
    """Store each row of an embedding matrix as a vector that belongs to the tensor; False if they are there.

    Rows with NaN or infinite elements have no place in a metric space and are left out.

    Parameters
    ----------
    source
        Two axes, of a real element type.
    labels
        Gives row number to text, asked only when rows are written; rows without one get none.
    upload_nbytes
        Size of the whole import the matrix belongs to: what was uploaded by short transactions is embedded so, too.
    """
    with destination(session, upload_nbytes, small_nbytes=SMALL_NBYTES) as target:
        try:
            with target.batch() as connection:
                exists = connection.execute(_EXISTS, (TENANT_ID, kind, tensor_id)).fetchone()
                if exists is not None and exists[0]:
                    return False
                rows = _matrix_rows(source, tensor_id, kind, labels(), meter)
                # All or nothing, so that the first row stands for all of them.
                while batch := list(islice(rows, ROWS_PER_COPY)):
                    EMBEDDINGS.insert(connection, batch)
        except ConstraintViolation as error:
            if error.sqlstate != UNIQUE_VIOLATION:
                raise
            return False  # another import of the same tensor was faster
    return True


def _matrix_rows(
    source: TensorSource, tensor_id: uuid.UUID, kind: str, labels: Mapping[int, str], meter: Meter
) -> Iterator[tuple[Any, ...]]:
    row_count, dimension = source.shape
    row_nbytes = source.nbytes // row_count
    step = max(1, READ_NBYTES // row_nbytes)
    for first in range(0, row_count, step):
        count = min(step, row_count - first)
        raw = bytearray(count * row_nbytes)
        source.read_into(first * row_nbytes, memoryview(raw))
        matrix = np.frombuffer(raw, source.dtype.numpy).reshape(count, dimension).astype(np.float32)
        finite = np.isfinite(matrix).all(axis=1)
        for offset in np.flatnonzero(finite).tolist():
            row = first + offset
            yield (TENANT_ID, kind, tensor_id, row, tensor_id, labels.get(row), dimension, matrix[offset])
        meter.add(len(raw))


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
    with destination(session, 0, small_nbytes=SMALL_NBYTES) as target, target.batch() as connection:
        EMBEDDINGS.insert(connection, list(rows))

"""Rows of embedding matrices made searchable: of what is imported, and of what is made from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import select, text

from arc_halo.registry.embeddings import MAX_DIMENSION
from arc_halo.schema import Embedding
from arc_halo.schema.columns import TENANT_ID
from arc_halo.store import Meter, Wanted
from arc_halo.store.embeddings import put_matrix_rows
from arc_halo.store.statistics import is_numeric

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Collection, Mapping

    from sqlalchemy.orm import Session

    from arc_halo.dtypes import DType
    from arc_halo.schema import Model
    from arc_halo.store import Progress

EMBEDDINGS_NBYTES = 256 << 20
"""Up to this size, as float32, rows of the embedding matrices of one model are made searchable."""

# Of each name the tensor of the nearest ancestor whose rows are searchable, the model itself being the nearest.
_SEARCHABLE = text("""
WITH RECURSIVE line (id, depth) AS (
    SELECT CAST(:model AS uuid), 0
    UNION
    SELECT l.parent_id, a.depth + 1 FROM line AS a JOIN arc_halo.model_lineage AS l ON l.child_id = a.id)
SELECT DISTINCT ON (w.name) w.name, e.kind, w.tensor_id
  FROM line
  JOIN arc_halo.model_weights AS w ON w.model_id = line.id AND w.name = ANY(:names)
 CROSS JOIN LATERAL (SELECT r.kind FROM arc_halo.embeddings AS r
                      WHERE r.tensor_id = w.tensor_id AND r.kind IN ('token', 'position', 'segment') LIMIT 1) AS e
 ORDER BY w.name, line.depth, w.model_id
""")


class Described(Protocol):
    """A tensor that is stored, or about to be: what is known of it without its elements."""

    @property
    def name(self) -> str:
        """Of its weight."""

    @property
    def dtype(self) -> DType:
        """Of its elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""

    @property
    def nbytes(self) -> int:
        """Of its elements."""


@dataclass(frozen=True, slots=True)
class Searchable:
    """A matrix whose rows are to be found: of which kind they are, and the texts of the rows that have one."""

    source: Described
    kind: str
    labels: Callable[[], Mapping[int, str]]


def inherit_searchable(session: Session, origin: Model, sources: Mapping[str, Described]) -> list[Searchable]:
    """Those of new tensors, by their weights' names, whose rows are searchable in the model they are made from.

    Where that has codes in their place, in the model that it was made from, and so on.
    """
    rows = session.execute(_SEARCHABLE, {"model": origin.id, "names": list(sources)}).all()
    return [
        Searchable(sources[name], kind, partial(_labels_of, session, kind, tensor_id)) for name, kind, tensor_id in rows
    ]


def _labels_of(session: Session, kind: str, tensor_id: uuid.UUID) -> Mapping[int, str]:
    statement = select(Embedding.row_index, Embedding.label).where(
        Embedding.tenant_id == TENANT_ID, Embedding.kind == kind, Embedding.owner_id == tensor_id
    )
    return {row: label for row, label in session.execute(statement.where(Embedding.label.is_not(None))) if label}


def put_searchable(
    session: Session,
    matrices: Collection[Searchable],
    tensor_ids: Mapping[str, uuid.UUID],
    *,
    upload_nbytes: int,
    progress: Progress | None,
) -> None:
    """Make rows of stored matrices searchable, if all of them together are small enough.

    Parameters
    ----------
    tensor_ids
        By the names of the sources.
    upload_nbytes
        Size of everything that was uploaded with them.
    """
    chosen = [each for each in matrices if _is_searchable(each.source)]
    if sum(each.source.shape[0] * each.source.shape[1] * 4 for each in chosen) > EMBEDDINGS_NBYTES:
        return
    meter = Meter(progress, "embed", sum(each.source.nbytes for each in chosen))
    for each in chosen:
        put_matrix_rows(
            session,
            Wanted(each.source.name, tensor_ids[each.source.name], each.source.nbytes),
            each.kind,
            each.labels,
            upload_nbytes=upload_nbytes,
            meter=meter,
        )


def _is_searchable(source: Described) -> bool:
    numeric = is_numeric(source.dtype) and source.dtype.is_float
    return numeric and len(source.shape) == 2 and source.shape[0] > 0 and 0 < source.shape[1] <= MAX_DIMENSION  # noqa: PLR2004  # a matrix

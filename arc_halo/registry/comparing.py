"""What two models share and where they differ; what a model costs and what it saves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sqlalchemy import text

from arc_halo.registry.naming import find_model

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session

    from arc_halo.schema import Model

Change = Literal["added", "removed", "reshaped", "changed"]

_DIFFERENCES = """
WITH before AS (SELECT w.name, w.position, w.tensor_id, t.dtype, t.shape, t.nbytes, t.l2_norm
                  FROM arc_halo.model_weights AS w JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
                 WHERE w.model_id = :before),
     after AS (SELECT w.name, w.position, w.tensor_id, t.dtype, t.shape, t.nbytes, t.l2_norm
                 FROM arc_halo.model_weights AS w JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
                WHERE w.model_id = :after)
SELECT name,
       CASE WHEN before.name IS NULL THEN 'added' WHEN after.name IS NULL THEN 'removed'
            WHEN (before.dtype, before.shape) IS DISTINCT FROM (after.dtype, after.shape) THEN 'reshaped'
            ELSE 'changed' END AS change,
       coalesce(after.nbytes, before.nbytes) AS nbytes,
       (SELECT coalesce(sum(new.raw_nbytes), 0)::bigint FROM arc_halo.tensor_chunks AS new
         WHERE new.tensor_id = after.tensor_id
           AND NOT EXISTS (SELECT FROM arc_halo.tensor_chunks AS old
                            WHERE old.tensor_id = before.tensor_id AND old.digest = new.digest)) AS changed_nbytes,
       before.l2_norm AS l2_norm_before, after.l2_norm AS l2_norm_after
  FROM before FULL JOIN after USING (name)
 WHERE before.tensor_id IS DISTINCT FROM after.tensor_id
 ORDER BY coalesce(after.position, before.position), name
"""
_EQUAL = """
SELECT count(*), coalesce(sum(t.nbytes), 0)::bigint
  FROM arc_halo.model_weights AS a JOIN arc_halo.model_weights AS b ON a.name = b.name AND a.tensor_id = b.tensor_id
  JOIN arc_halo.tensor_metadata AS t ON t.id = a.tensor_id
 WHERE a.model_id = :before AND b.model_id = :after
"""
_STORAGE = """
WITH weights AS (SELECT w.tensor_id, t.nbytes FROM arc_halo.model_weights AS w
                   JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id WHERE w.model_id = :model),
     used AS (SELECT DISTINCT d.tenant_id, d.digest, d.raw_nbytes, d.stored_nbytes
                FROM weights AS w JOIN arc_halo.tensor_chunks AS c ON c.tensor_id = w.tensor_id
                JOIN arc_halo.tensor_data AS d ON d.tenant_id = c.tenant_id AND d.digest = c.digest),
     marked AS (SELECT used.*, EXISTS (
                    SELECT FROM arc_halo.tensor_chunks AS c
                      JOIN arc_halo.model_weights AS o ON o.tensor_id = c.tensor_id
                     WHERE c.tenant_id = used.tenant_id AND c.digest = used.digest
                       AND o.model_id <> :model) AS is_shared
                  FROM used)
SELECT (SELECT coalesce(sum(nbytes), 0) FROM weights)::bigint, count(*), coalesce(sum(raw_nbytes), 0)::bigint,
       coalesce(sum(stored_nbytes), 0)::bigint, coalesce(sum(stored_nbytes) FILTER (WHERE is_shared), 0)::bigint
  FROM marked
"""


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A tensor that two models do not have in common.

    ``changed_nbytes`` counts the raw bytes of those chunks of the second that the first one's tensor does not have.
    Norms are those of the whole tensors, None where one of them has none.
    """

    name: str
    change: Change
    nbytes: int
    changed_nbytes: int
    l2_norm_before: float | None
    l2_norm_after: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The tensors in which two models differ, and number and bytes of those in which they are equal."""

    differences: list[TensorDifference]
    equal_count: int
    equal_nbytes: int


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a model's bytes went.

    Attributes
    ----------
    raw_nbytes
        All weights as they lie in files.
    chunk_count, distinct_nbytes
        Different chunks they are cut into, and the raw bytes of those.
    stored_nbytes
        What those chunks take in the database.
    shared_nbytes
        The part of ``stored_nbytes`` that other models use, too.
    """

    raw_nbytes: int
    chunk_count: int
    distinct_nbytes: int
    stored_nbytes: int
    shared_nbytes: int

    @property
    def deduplicated_nbytes(self) -> int:
        """Raw bytes that need not be stored because the model repeats itself."""
        return self.raw_nbytes - self.distinct_nbytes

    @property
    def compressed_nbytes(self) -> int:
        """Bytes that compression took away."""
        return self.distinct_nbytes - self.stored_nbytes

    @property
    def own_nbytes(self) -> int:
        """Stored bytes that go when this model goes."""
        return self.stored_nbytes - self.shared_nbytes


def compare_models(session: Session, before: Model | uuid.UUID | str, after: Model | uuid.UUID | str) -> Comparison:
    """Compare two models by the digests of their tensors and chunks; no tensor is read.

    Raises
    ------
    ModelNotFound
        There is no such model.
    """
    ids = {"before": find_model(session, before).id, "after": find_model(session, after).id}
    session.flush()
    differences = [TensorDifference(*row) for row in session.execute(text(_DIFFERENCES), ids)]
    return Comparison(differences, *session.execute(text(_EQUAL), ids).one())


def measure_storage(session: Session, model: Model | uuid.UUID | str) -> Storage:
    """Where a model's bytes went, by chunk.

    Raises
    ------
    ModelNotFound
        There is no such model.
    """
    found = find_model(session, model)
    session.flush()
    return Storage(*session.execute(text(_STORAGE), {"model": found.id}).one())


def delete_model(session: Session, model: Model | uuid.UUID | str) -> None:
    """Delete a model with its layers, heads, files and aliases; its chunks wait for ``prune``.

    Raises
    ------
    ModelNotFound
        There is no such model.
    """
    session.delete(find_model(session, model))
    session.flush()

"""Which models are stored as differences from one another, and the bytes that hang on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from arc_halo.registry.naming import find_model

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session

    from arc_halo.schema import Model

_LEANS_ON = text("""
WITH deltas AS MATERIALIZED (
    SELECT DISTINCT t.id AS tensor_id, d.tenant_id, d.digest, d.base_digest, d.raw_nbytes - d.stored_nbytes AS nbytes
      FROM arc_halo.model_weights AS w
      JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
      JOIN arc_halo.tensor_chunks AS c ON c.tenant_id = t.tenant_id AND c.tensor_id = t.id
      JOIN arc_halo.tensor_data AS d ON d.tenant_id = c.tenant_id AND d.digest = c.digest
     WHERE w.model_id = :model
       AND d.base_digest IS NOT NULL)
SELECT (SELECT count(DISTINCT tensor_id) FROM deltas),
       (SELECT coalesce(sum(nbytes), 0)::bigint FROM (SELECT DISTINCT tenant_id, digest, nbytes FROM deltas) AS chunks),
       ARRAY(SELECT DISTINCT m.name || '@' || m.version
               FROM deltas
               JOIN arc_halo.tensor_chunks AS c ON c.tenant_id = deltas.tenant_id AND c.digest = deltas.base_digest
               JOIN arc_halo.model_weights AS w ON w.tensor_id = c.tensor_id
               JOIN arc_halo.models AS m ON m.id = w.model_id
              WHERE m.id <> :model
              ORDER BY 1)
""")
# By way of chunks that nobody uses, too: until they are pruned, deltas of other models may lean through them.
_LEANED_ON = text("""
WITH RECURSIVE own AS MATERIALIZED (
    SELECT DISTINCT d.tenant_id, d.digest, d.stored_nbytes
      FROM arc_halo.model_weights AS w
      JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
      JOIN arc_halo.tensor_chunks AS c ON c.tenant_id = t.tenant_id AND c.tensor_id = t.id
      JOIN arc_halo.tensor_data AS d ON d.tenant_id = c.tenant_id AND d.digest = c.digest
     WHERE w.model_id = :model
       AND NOT EXISTS (
           SELECT
             FROM arc_halo.tensor_chunks AS o
             JOIN arc_halo.model_weights AS other ON other.tensor_id = o.tensor_id
            WHERE o.tenant_id = d.tenant_id AND o.digest = d.digest AND other.model_id <> :model)),
leaning (tenant_id, base, digest) AS (
    SELECT d.tenant_id, own.digest, d.digest
      FROM own
      JOIN arc_halo.tensor_data AS d ON d.tenant_id = own.tenant_id AND d.base_digest = own.digest
     UNION ALL
    SELECT d.tenant_id, leaning.base, d.digest
      FROM leaning
      JOIN arc_halo.tensor_data AS d ON d.tenant_id = leaning.tenant_id AND d.base_digest = leaning.digest),
used AS MATERIALIZED (
    SELECT DISTINCT leaning.tenant_id, leaning.base, w.model_id
      FROM leaning
      JOIN arc_halo.tensor_chunks AS c ON c.tenant_id = leaning.tenant_id AND c.digest = leaning.digest
      JOIN arc_halo.model_weights AS w ON w.tensor_id = c.tensor_id
     WHERE w.model_id <> :model)
SELECT (SELECT coalesce(sum(own.stored_nbytes), 0)::bigint
          FROM own
         WHERE (own.tenant_id, own.digest) IN (SELECT used.tenant_id, used.base FROM used)),
       ARRAY(SELECT m.name || '@' || m.version
               FROM arc_halo.models AS m
              WHERE m.id IN (SELECT used.model_id FROM used)
              ORDER BY 1)
""")


@dataclass(frozen=True, slots=True)
class Leaning:
    """What a model's deltas lean on, and what leans on the model.

    Attributes
    ----------
    delta_tensor_count, delta_saved_nbytes
        Tensors that have chunks stored as differences, and by how much those chunks are smaller than their raw bytes.
    base_models
        The other models, as ``name@version``, that use the chunks which the deltas are differences from.
    leaned_on_nbytes, leaning_models
        Stored bytes of chunks that only this model uses and on which deltas of other models lean, and those models.
        When this model is deleted and pruned, these deltas are encoded anew, and take more.
    """

    delta_tensor_count: int
    delta_saved_nbytes: int
    base_models: list[str]
    leaned_on_nbytes: int
    leaning_models: list[str]


def measure_leaning(session: Session, model: Model | uuid.UUID | str) -> Leaning:
    """Find what a model leans on and what leans on it, by rows: no tensor is read.

    Raises
    ------
    ModelNotFound
        There is no such model.
    """
    asked = {"model": find_model(session, model).id}
    session.flush()
    return Leaning(*session.execute(_LEANS_ON, asked).one(), *session.execute(_LEANED_ON, asked).one())

"""What two models share and where they differ; what a model costs and what it saves."""

from __future__ import annotations

from dataclasses import dataclass, fields
from html import escape
from typing import TYPE_CHECKING, Literal

from sqlalchemy import select, text

from arc_halo.registry.differing import Distance, TensorDistance, by_layer, measure_distances
from arc_halo.registry.heatmap import HeatMap, heat_map
from arc_halo.registry.naming import find_model
from arc_halo.registry.pairing import find_pairs
from arc_halo.schema import ModelStorage
from arc_halo.schema.html import html_table, html_title

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session

    from arc_halo.schema import Model
    from arc_halo.store import Progress

Change = Literal["added", "removed", "reshaped", "resized", "cast", "changed"]

_DIFFERENCES = text("""
SELECT c.name, c.change, coalesce(c.nbytes_after, c.nbytes_before),
       (SELECT coalesce(sum(new.raw_nbytes), 0)::bigint
          FROM arc_halo.tensor_metadata AS t
          JOIN arc_halo.tensor_chunks AS new ON new.tenant_id = t.tenant_id AND new.tensor_id = t.id
         WHERE t.id = c.tensor_after
           AND NOT EXISTS (SELECT FROM arc_halo.tensor_chunks AS old
                            WHERE old.tenant_id = new.tenant_id AND old.tensor_id = c.tensor_before
                              AND old.digest = new.digest)),
       c.norm_before, c.norm_after, c.dtype_before, c.dtype_after, c.shape_before, c.shape_after
  FROM arc_halo.compare_weights(:before, :after) AS c
""")
_EQUAL = text("""
SELECT count(*), coalesce(sum(t.nbytes), 0)::bigint
  FROM arc_halo.model_weights AS a JOIN arc_halo.model_weights AS b ON a.name = b.name AND a.tensor_id = b.tensor_id
  JOIN arc_halo.tensor_metadata AS t ON t.id = a.tensor_id
 WHERE a.model_id = :before AND b.model_id = :after
""")


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A tensor that two models do not have in common.

    It is ``cast`` where it has another element type, ``resized`` where it has another number of rows, and ``reshaped``
    where it has another shape. ``changed_nbytes`` counts the raw bytes of those chunks of the second that the first
    one's tensor does not have. Norms are those of the whole tensors, None where one of them has none. ``reason`` says
    why two tensors are not compared number by number.
    """

    name: str
    change: Change
    nbytes: int
    changed_nbytes: int
    l2_norm_before: float | None
    l2_norm_after: float | None
    dtype_before: str | None
    dtype_after: str | None
    shape_before: list[int] | None
    shape_after: list[int] | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The tensors in which two models differ, and number and bytes of those in which they are equal.

    In a notebook it is a heat map, or without values a table.

    Attributes
    ----------
    before, after
        The models, as ``name@version``.
    distances
        How far the tensors that both have are apart, equal ones at no distance; those without one have a ``reason``
        among the differences. None unless values were asked for.
    """

    before: str
    after: str
    differences: list[TensorDifference]
    equal_count: int
    equal_nbytes: int
    distances: list[TensorDistance] | None = None

    @property
    def layers(self) -> dict[str, Distance]:
        """Distances of whole layers by their paths; empty without values."""
        return by_layer(self.distances or ())

    @property
    def title(self) -> str:
        """What is compared with what."""
        return f"{self.before} → {self.after}"

    def heat_map(self) -> HeatMap:
        """Where they differ, as a picture of blocks and their parts; empty without values."""
        return heat_map(self.distances or (), self.title)

    def _repr_html_(self) -> str:
        if self.distances is not None:
            return self.heat_map().to_html_fragment()
        rows = [(each.name, each.change, each.l2_norm_before, each.l2_norm_after) for each in self.differences]
        said = f"{len(rows):,} tensors differ, {self.equal_count:,} are equal"
        return (
            html_title("Comparison", self.title)
            + f"<br>{escape(said)}"
            + html_table(["tensor", "change", "norm before", "norm after"], rows)
        )


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a model's bytes went; its fields are those of `ModelStorage`.

    Attributes
    ----------
    raw_nbytes
        All weights as they lie in files.
    chunk_count, distinct_nbytes
        Different chunks they are cut into, and the raw bytes of those.
    stored_nbytes
        What those chunks take, in the database or in the blob store.
    shared_nbytes
        The part of ``stored_nbytes`` that other models use, too.
    base_nbytes
        Stored bytes that the model's deltas lean on and the model itself does not use.
    """

    raw_nbytes: int
    chunk_count: int
    distinct_nbytes: int
    stored_nbytes: int
    shared_nbytes: int
    base_nbytes: int

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
        """Stored bytes that no other model uses; less goes with it where deltas of others lean on them, and grow."""
        return self.stored_nbytes - self.shared_nbytes


def compare_models(
    session: Session,
    before: Model | uuid.UUID | str,
    after: Model | uuid.UUID | str,
    *,
    values: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two models.

    Parameters
    ----------
    values
        Read the chunks in which they differ, and say how far the numbers are apart. By default digests of tensors and
        chunks are compared, which takes milliseconds whatever the models' size.
    progress
        Called with ``compare``, bytes done and bytes in all.

    Raises
    ------
    ModelNotFound
        There is no such model.
    CorruptionError
        Stored bytes are not those that were written.

    Examples
    --------
    >>> compare_models(session, "minilm@1", "minilm@2", values=True).layers  # doctest: +SKIP
    {'encoder.layer.0.attention': Distance(...), ...}
    """
    first, second = find_model(session, before), find_model(session, after)
    ids = {"before": first.id, "after": second.id}
    session.flush()
    pairs = find_pairs(session, first.id, second.id)
    reasons = {pair.after.name: pair.reason for pair in pairs}
    equal_count, equal_nbytes = session.execute(_EQUAL, ids).one()
    return Comparison(
        f"{first.name}@{first.version}",
        f"{second.name}@{second.version}",
        [TensorDifference(*(*row, reasons.get(row[0]))) for row in session.execute(_DIFFERENCES, ids)],
        equal_count,
        equal_nbytes,
        measure_distances(session, pairs, progress=progress) if values else None,
    )


def measure_storage(session: Session, model: Model | uuid.UUID | str) -> Storage:
    """Where a model's bytes went, by chunk: what ``v_model_storage`` says of it.

    Raises
    ------
    ModelNotFound
        There is no such model.
    """
    found = find_model(session, model)
    session.flush()
    columns = [getattr(ModelStorage, each.name) for each in fields(Storage)]
    return Storage(*session.execute(select(*columns).where(ModelStorage.model_id == found.id)).one())

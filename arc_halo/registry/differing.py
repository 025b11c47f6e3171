"""How far the numbers of two models are apart: per tensor and per layer, read in bounded windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import text

from arc_halo.registry.naming import find_model
from arc_halo.store import Meter, Progress, Wanted
from arc_halo.store.connections import Reading
from arc_halo.store.get import Part, iter_pieces, load_manifests

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.schema import Model
    from arc_halo.store.get import Manifest

_PAIRS = text("""
SELECT a.name, coalesce(l.path, ''), b.tensor_id, t.nbytes, a.tensor_id, u.nbytes
  FROM arc_halo.model_weights AS b
  JOIN arc_halo.model_weights AS a ON a.name = b.name AND a.model_id = :after
  JOIN arc_halo.tensor_metadata AS t ON t.id = b.tensor_id
  JOIN arc_halo.tensor_metadata AS u ON u.id = a.tensor_id
  LEFT JOIN arc_halo.transformer_layers AS l ON l.id = a.layer_id
 WHERE b.model_id = :before AND a.tensor_id <> b.tensor_id AND t.shape = u.shape
 ORDER BY a.position
""")
_BLOCK = 1 << 18


@dataclass(slots=True)
class Distance:
    """How far numbers are apart; sums of squares of the first, of the second, of their product and their difference.

    Elements that are not finite in either are left out of the sums and counted as changed where their bits differ.
    """

    before: float = 0.0
    after: float = 0.0
    product: float = 0.0
    difference: float = 0.0
    max_abs: float = 0.0
    changed: int = 0
    count: int = 0

    def add(self, other: Distance) -> None:
        """Take in those of other elements."""
        for name in ("before", "after", "product", "difference", "changed", "count"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_abs = max(self.max_abs, other.max_abs)

    @property
    def l2(self) -> float:
        """Euclidean distance."""
        return math.sqrt(self.difference)

    @property
    def relative_l2(self) -> float:
        """The distance in units of the first one's norm; infinite from nothing to something."""
        return math.sqrt(self.difference / self.before) if self.before else (math.inf if self.difference else 0.0)

    @property
    def cosine(self) -> float | None:
        """Of the angle between the two as vectors; None where one is zero."""
        norms = math.sqrt(self.before) * math.sqrt(self.after)
        return self.product / norms if norms else None

    @property
    def changed_share(self) -> float:
        """Share of the elements that are not the same numbers."""
        return self.changed / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class TensorDistance:
    """A tensor that both models have, in one shape and with other numbers."""

    name: str
    layer: str
    distance: Distance


def measure_distances(
    session: Session,
    before: Model | uuid.UUID | str,
    after: Model | uuid.UUID | str,
    *,
    progress: Progress | None = None,
) -> list[TensorDistance]:
    """Read the tensors in which two models differ, and say how far they are apart.

    Tensors of equal digest are not read, nor those of packed or quantised types; of others the element types may
    differ.

    Raises
    ------
    ModelNotFound
        There is no such model.
    CorruptionError
        Stored bytes are not those that were written.
    """
    ids = {"before": find_model(session, before).id, "after": find_model(session, after).id}
    session.flush()
    rows = session.execute(_PAIRS, ids).all()
    meter = Meter(progress, "compare", sum(row[3] + row[5] for row in rows))
    found = []
    connect = Reading(session)
    for name, layer, before_id, before_nbytes, after_id, after_nbytes in rows:
        wanted = [Wanted(name, before_id, before_nbytes), Wanted(name, after_id, after_nbytes)]
        manifests = load_manifests(connect, wanted)
        if all(manifest.layout.dtype.numpy is not None for manifest in manifests):
            found.append(TensorDistance(name, layer, _distance(connect, manifests)))
        meter.add(before_nbytes + after_nbytes)
    return found


def by_layer(distances: Sequence[TensorDistance]) -> dict[str, Distance]:
    """Distances of whole layers, in their order."""
    layers: dict[str, Distance] = {}
    for each in distances:
        layers.setdefault(each.layer, Distance()).add(each.distance)
    return layers


def _distance(connect: Reading, manifests: Sequence[Manifest]) -> Distance:
    total = Distance()
    left, right = (_blocks(connect, manifest) for manifest in manifests)
    for ours, theirs in zip(left, right, strict=True):
        total.add(_compare(ours, theirs))
    return total


def _blocks(connect: Reading, manifest: Manifest) -> Iterator[np.ndarray]:
    """Elements as float64, the same number at a time however the tensor is cut."""
    dtype = manifest.layout.dtype
    rest = np.empty(0, np.float64)
    for piece in iter_pieces(connect, [Part(manifest, range(len(manifest.layout)))]):
        raw = np.frombuffer(piece.raw, dtype.numpy)
        values = raw.real if dtype.name == "C64" else raw
        rest = np.concatenate([rest, values.astype(np.float64)])
        while rest.size >= _BLOCK:
            yield rest[:_BLOCK]
            rest = rest[_BLOCK:]
    if rest.size:
        yield rest


def _compare(before: np.ndarray, after: np.ndarray) -> Distance:
    is_same = (before == after) | (np.isnan(before) & np.isnan(after))
    finite = np.isfinite(before) & np.isfinite(after)
    ours, theirs = np.where(finite, before, 0.0), np.where(finite, after, 0.0)
    apart = theirs - ours
    return Distance(
        before=float(ours @ ours),
        after=float(theirs @ theirs),
        product=float(ours @ theirs),
        difference=float(apart @ apart),
        max_abs=float(np.abs(apart).max(initial=0.0)),
        changed=int(np.count_nonzero(~is_same)),
        count=before.size,
    )

"""Which tensors of two models are compared number by number, and why others are not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from arc_halo.dtypes import DTYPES
from arc_halo.formats.architectures.codes import scale_of

if TYPE_CHECKING:
    import uuid
    from collections.abc import Set as AbstractSet

    from sqlalchemy.orm import Session

_WEIGHTS = text("""
SELECT w.name, coalesce(l.path, ''), w.tensor_id, t.dtype, t.shape, t.nbytes, t.l2_norm,
       coalesce(t.nan_count + t.inf_count, 0)
  FROM arc_halo.model_weights AS w
  JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
  LEFT JOIN arc_halo.transformer_layers AS l ON l.id = w.layer_id
 WHERE w.model_id = :model
 ORDER BY l.position, w.position
""")


@dataclass(frozen=True, slots=True)
class PairedWeight:
    """One of the two; ``norm`` is over its finite elements, None where it is not known."""

    name: str
    layer: str
    tensor_id: uuid.UUID
    dtype: str
    shape: list[int]
    nbytes: int
    norm: float | None
    unsound_count: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Tensors of one name in two models; ``reason`` is why numbers of such two are not compared where they differ."""

    before: PairedWeight
    after: PairedWeight
    reason: str | None

    @property
    def is_equal(self) -> bool:
        """They are one tensor."""
        return self.before.tensor_id == self.after.tensor_id

    @property
    def element_count(self) -> int:
        """How many they have in common: the first rows, where one has more of them."""
        return min(math.prod(self.before.shape), math.prod(self.after.shape))

    @property
    def shorter(self) -> int:
        """0 where all of the first is compared, 1 where all of the second is."""
        return int(math.prod(self.before.shape) > self.element_count)


def find_pairs(session: Session, before_id: uuid.UUID, after_id: uuid.UUID) -> list[Pair]:
    """Tensors whose names both models have, in the order of the second one's layers."""
    ours, theirs = (
        {row[0]: PairedWeight(*row) for row in session.execute(_WEIGHTS, {"model": model})}
        for model in (before_id, after_id)
    )
    return [
        Pair(ours[name], weight, _reason(ours[name], weight, (ours.keys(), theirs.keys())))
        for name, weight in theirs.items()
        if name in ours
    ]


def _reason(before: PairedWeight, after: PairedWeight, names: tuple[AbstractSet[str], AbstractSet[str]]) -> str | None:
    pair = (before, after)
    for each in pair:
        if each.dtype not in DTYPES or DTYPES[each.dtype].numpy is None:
            return f"{each.dtype} is packed"
    if any(scale_of(each.name, DTYPES[each.dtype], beside) for each, beside in zip(pair, names, strict=True)):
        return "codes of a quantised tensor"
    if len(before.shape) != len(after.shape) or before.shape[1:] != after.shape[1:]:
        return f"{_shape(before)} against {_shape(after)}"
    if before.dtype != after.dtype and not all(DTYPES[each.dtype].is_float for each in pair):
        return f"{before.dtype} against {after.dtype}"
    return None


def _shape(weight: PairedWeight) -> str:
    return " x ".join(map(str, weight.shape)) or "scalar"

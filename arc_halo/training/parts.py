"""Parts of an array that several ranks hold, and whether they make up the whole."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np

from arc_halo.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

Shape: TypeAlias = tuple[int, ...]
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A block of a larger array.

    Attributes
    ----------
    array
        Its elements.
    offsets
        Where it begins on each axis of the whole.
    full_shape
        Of the whole.
    """

    array: np.ndarray
    offsets: Shape
    full_shape: Shape


Held: TypeAlias = "np.ndarray | Part | Sequence[Part]"
"""What a rank holds of an array: all of it, or one or more parts."""


def is_held(value: Any) -> TypeGuard[Held]:
    """Whether a value is an array, or parts of one."""
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(each, Part) for each in value)
    return isinstance(value, np.ndarray | np.generic | Part)


def parts_of(name: str, held: Held) -> list[tuple[np.ndarray, Shape | None, Shape | None]]:
    """Arrays with offsets and full shape, both None where it is the whole; parts without elements are left out.

    Raises
    ------
    CheckpointError
        It is no array, or a part does not lie within its whole.
    """
    if not is_held(held):
        kind = f"{type(held).__module__}.{type(held).__qualname__}"
        raise CheckpointError(f"{name} is a {kind}; give a numpy array")
    if isinstance(held, np.ndarray | np.generic):
        return [(held, None, None)]
    found: list[tuple[np.ndarray, Shape | None, Shape | None]] = []
    for part in (held,) if isinstance(held, Part) else held:
        offsets, full_shape = (tuple(map(int, each)) for each in (part.offsets, part.full_shape))
        shape = part.array.shape
        if not len(offsets) == len(full_shape) == len(shape) or not all(
            start >= 0 and start + size <= full for start, size, full in zip(offsets, shape, full_shape, strict=True)
        ):
            raise CheckpointError(f"{name}: a part of shape {shape} at {offsets} does not lie within {full_shape}")
        if shape == full_shape or not prod(full_shape):  # all of nothing, however it is cut
            found.append((np.empty(full_shape, part.array.dtype) if shape != full_shape else part.array, None, None))
        elif part.array.size:
            found.append((part.array, offsets, full_shape))
    if len(found) > 1 and any(offsets is None for _, offsets, _ in found):
        if found[0][0].size:
            raise CheckpointError(f"{name}: its parts overlap, one of them is the whole")
        return found[:1]
    return found


def explain_cover(full_shape: Shape, blocks: Sequence[tuple[Shape, Shape]]) -> str | None:
    """Why blocks, given by offsets and shapes, are not each element of the whole exactly once; None if they are."""
    missing = prod(full_shape) - sum(prod(shape) for _, shape in blocks)
    if missing > 0:
        return f"{missing:,} of {prod(full_shape):,} elements are missing"
    starts = np.array([offsets for offsets, _ in blocks], np.int64).reshape(len(blocks), -1)
    stops = starts + np.array([shape for _, shape in blocks], np.int64).reshape(len(blocks), -1)
    # Blocks that overlap nowhere and are together as large as the whole are the whole.
    for begin in range(0, len(blocks), _ROWS_AT_ONCE):
        rows = slice(begin, begin + _ROWS_AT_ONCE)
        meets = (starts[rows, None] < stops[None]) & (starts[None] < stops[rows, None])
        overlaps = np.asarray(meets.all(axis=2))
        overlaps[np.arange(overlaps.shape[0]), np.arange(begin, begin + overlaps.shape[0])] = False
        if overlaps.any():
            left, right = np.argwhere(overlaps)[0]
            return f"parts at {blocks[begin + int(left)][0]} and {blocks[int(right)][0]} overlap"
    return None

"""Parts of an array that several ranks hold, and whether they make up the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np


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
    offsets: tuple[int, ...]
    full_shape: tuple[int, ...]


Held: TypeAlias = "np.ndarray | Part | Sequence[Part]"
"""What a rank holds of an array: all of it, or one or more parts."""

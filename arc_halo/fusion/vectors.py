"""Vectors that likeness is measured by, as pgvector can."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from arc_halo.errors import FusionError

MAX_DIMENSION: Final = 16_000
"""That a vector of pgvector may have."""
_LEAST, _MOST = 1e-18, 1e18  # pgvector sums squares in float32: beyond, they are 0 or infinite, and a cosine is NaN


def checked_vector(vector: Any) -> np.ndarray:
    """A vector that has a cosine with others, float32 of shape [dimension].

    Raises
    ------
    FusionError
        It has another shape, a value that is no number, no direction, or a length beyond what cosines are taken of.
    """
    with np.errstate(over="ignore"):  # what is infinite by then is refused
        array = np.asarray(vector, np.float32)
    if array.ndim != 1 or not 0 < len(array) <= MAX_DIMENSION or not np.isfinite(array).all():
        raise FusionError(f"a vector has shape [1 to {MAX_DIMENSION}], and finite numbers; not {list(array.shape)}")
    length = float(np.linalg.norm(array.astype(np.float64)))
    if not _LEAST < length < _MOST:
        raise FusionError(
            f"a vector has a direction, and a length from {_LEAST:g} to {_MOST:g}, not {length:.3g}: scale it to 1"
        )
    return array

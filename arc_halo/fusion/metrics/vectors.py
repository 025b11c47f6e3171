"""Vectors of answers, checked."""

from __future__ import annotations

import numpy as np

from arc_halo.errors import FusionError

_MATRIX = 2


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64.

    Raises
    ------
    FusionError
        It is no matrix, or has a row without a direction.
    """
    array = np.asarray(vectors, np.float64)
    if array.ndim != _MATRIX or not np.isfinite(array).all():
        raise FusionError(f"vectors are finite, of shape [answers, dimension], not {list(array.shape)}")
    # By the greatest element first: squares of very small or great ones would be 0 or infinite.
    scale = np.abs(array).max(axis=1, keepdims=True, initial=0.0)
    if not scale.all():
        raise FusionError("a vector of zeros has no direction")
    array = array / scale
    unit: np.ndarray = array / np.linalg.norm(array, axis=1, keepdims=True)
    return unit

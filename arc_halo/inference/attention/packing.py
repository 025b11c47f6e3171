"""Attention matrices as they are stored: causal ones without their empty half."""

from __future__ import annotations

import math

import numpy as np

from arc_halo.errors import CacheError


def pack_matrix(matrix: np.ndarray) -> np.ndarray:
    """A matrix of one head, ``[tokens, tokens]``, as it is stored.

    Returns
    -------
    ndarray
        The lower triangle with the diagonal, row by row, on one axis; or the matrix itself where anything above the
        diagonal is not zero, be it only a negative zero.
    """
    whole = np.ascontiguousarray(matrix)
    lower = np.tri(len(whole), dtype=np.bool_)
    bits = whole.view(f"u{whole.itemsize}")
    return whole if bits[~lower].any() else whole[lower]


def unpack_matrix(stored: np.ndarray) -> np.ndarray:
    """The inverse of `pack_matrix`, every bit as it was.

    Raises
    ------
    CacheError
        It has another number of axes, or not as many elements as a triangle.
    """
    if stored.ndim == 2:  # noqa: PLR2004
        return stored
    # A triangle of n rows has n (n + 1) / 2 elements.
    tokens = (math.isqrt(8 * stored.size + 1) - 1) // 2
    if stored.ndim != 1 or tokens * (tokens + 1) // 2 != stored.size:
        raise CacheError(f"an array of shape {list(stored.shape)} is neither a matrix nor the triangle of one")
    matrix = np.zeros((tokens, tokens), stored.dtype)
    matrix[np.tri(tokens, dtype=np.bool_)] = stored
    return matrix

"""What may be taken for attention: matrices of a request whose rows share out one whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np

from arc_halo.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Sequence

# How far the sum of a row may be from one. A weight is rounded by half a unit in its last place: 2**-9 of it in
# bfloat16, 2**-12 in float16, where also weights below 3e-8 become zero; the rest is for softmaxes that are hurried.
_TOLERANCES: Final = {
    np.dtype(ml_dtypes.bfloat16): 2e-2,
    np.dtype(np.float16): 1e-2,
    np.dtype(np.float32): 1e-4,
    np.dtype(np.float64): 1e-4,
}
_MAX_TOKEN: Final = 2**31 - 1


def check_tokens(token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Token ids as int32.

    Raises
    ------
    CacheError
        They are none, no whole numbers, of more than one axis, or beyond 32 bits.
    """
    tokens = np.asarray(token_ids)
    if tokens.ndim != 1 or not tokens.size or tokens.dtype.kind not in "iu":
        raise CacheError(
            f"token_ids are {tokens.dtype} of shape {tokens.shape}; give the ids of one request, at least one"
        )
    if tokens.min() < 0 or tokens.max() > _MAX_TOKEN:
        raise CacheError(f"token ids lie from {tokens.min()} to {tokens.max()}; they must be from 0 to {_MAX_TOKEN}")
    return tokens.astype(np.int32)


def check_shape(matrices: Any, token_count: int, where: str) -> float:
    """How far the sums of rows may be from one, by the type of the matrices.

    Raises
    ------
    CacheError
        They are not floats, or not ``[heads, tokens, tokens]``.
    """
    if not isinstance(matrices, np.ndarray):
        kind = f"{type(matrices).__module__}.{type(matrices).__name__}"
        raise CacheError(f"attention of {where} is a {kind}; give a numpy array")
    tolerance = _TOLERANCES.get(matrices.dtype.newbyteorder("="))
    if tolerance is None:
        known = ", ".join(str(each) for each in _TOLERANCES)
        raise CacheError(f"attention of {where} is of {matrices.dtype}; give one of {known}")
    if matrices.ndim != 3 or not matrices.shape[0] or matrices.shape[1] != matrices.shape[2]:  # noqa: PLR2004
        raise CacheError(
            f"attention of {where} has shape {list(matrices.shape)}; give [heads, queries, keys] of one request, "
            "a query and a key for each token"
        )
    if matrices.shape[1] != token_count:
        raise CacheError(f"attention of {where} is of {matrices.shape[1]} tokens, token_ids has {token_count}")
    return tolerance


def check_rows(weights: np.ndarray, tolerance: float, where: str, first_query: int) -> None:
    """Refuse rows of one head that are no shares of one whole.

    Raises
    ------
    CacheError
        A weight is NaN, infinite or negative, or the sum of a row is further from one than ``tolerance``.
    """
    sums = weights.sum(axis=1, dtype=np.float64)
    off = ~(np.abs(sums - 1) <= tolerance)  # also where the sum is NaN
    if off.any():
        query = int(np.flatnonzero(off)[0])
        raise CacheError(
            f"attention of {where}, query {first_query + query}, sums to {sums[query]:.6g}, not to 1 within "
            f"{tolerance:g}; give what the softmax gave, without dropout and in the type it was computed in"
        )
    if weights.min() < 0:
        query = int(np.flatnonzero((weights < 0).any(axis=1))[0])
        raise CacheError(f"attention of {where}, query {first_query + query}, has a negative weight; give no logits")

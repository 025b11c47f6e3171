"""Curves made smooth, as TensorBoard does it."""

from __future__ import annotations

from itertools import accumulate
from typing import Final

import numpy as np

from arc_halo.errors import MetricError

_BLOCK: Final = 64


def ema(values: np.ndarray, weight: float = 0.6) -> np.ndarray:
    """Exponential moving average without the bias towards zero of its beginning.

    Of values x it is s(n) = weight s(n - 1) + (1 - weight) x(n), from s(0) = 0, divided by 1 - weight^n: Kingma and Ba,
    "Adam", 2015, section 3, and what TensorBoard draws. Values that are not finite stay where they are and have no part
    in others.

    Parameters
    ----------
    values
        Shape (n,), in the order of their steps.
    weight
        Of what was before, from 0 (no smoothing) to below 1.

    Returns
    -------
    ndarray
        float64, shape (n,).

    Raises
    ------
    MetricError
        The weight is outside of that, or values have several axes.

    Examples
    --------
    >>> ema(np.array([1.0, 0.0, np.nan, 0.0]), 0.5).round(3)
    array([1.   , 0.333,   nan, 0.143])
    """
    values = np.asarray(values, np.float64)
    check_weight(weight)
    if values.ndim != 1:
        raise MetricError(f"values of shape {values.shape} are no curve; smooth one at a time")
    smooth = values.copy()
    finite = np.isfinite(values)
    if finite.any():
        known = values[finite]
        exponent = np.frexp(np.abs(known).max())[1]  # so that nothing on the way is too small or too large
        scaled = np.ldexp(known, -exponent)
        unbiased = _averages(scaled, weight) / (1 - weight ** np.arange(1, len(known) + 1, dtype=np.float64))
        smooth[finite] = np.ldexp(unbiased.clip(scaled.min(), scaled.max()), exponent)
    return smooth


def check_weight(weight: float) -> None:
    """Raise `MetricError` for a weight that smooths nothing."""
    if not 0 <= weight < 1:
        raise MetricError(f"smoothing weight {weight} must be from 0 to below 1, such as 0.6")


def _averages(values: np.ndarray, weight: float) -> np.ndarray:
    """The recurrence, by matrices over blocks and from block to block by its own last value."""
    ages = np.arange(_BLOCK)[:, None] - np.arange(_BLOCK)
    within = np.where(ages >= 0, (1 - weight) * weight ** np.maximum(ages, 0).astype(np.float64), 0.0)
    padded = np.zeros(-(-len(values) // _BLOCK) * _BLOCK)
    padded[: len(values)] = values
    blocks = padded.reshape(-1, _BLOCK) @ within.T
    kept = weight**_BLOCK
    ends = list(accumulate(blocks[:, -1].tolist(), lambda carried, own: own + kept * carried))
    decay = weight ** np.arange(1, _BLOCK + 1, dtype=np.float64)
    blocks[1:] += np.asarray(ends[:-1])[:, None] * decay
    return blocks.ravel()[: len(values)]

"""How much answers agree: by their vectors, or as distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from arc_halo.errors import FusionError
from arc_halo.fusion.metrics.vectors import unit_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

_MATRIX = 2
_ROUNDING = 1e-6


def mean_pairwise_cosine(vectors: np.ndarray) -> float | None:
    r"""Mean cosine of all pairs of vectors, from -1 to 1.

    With unit vectors u, :math:`\frac{2}{n(n-1)} \sum_{i<j} u_i \cdot u_j = \frac{|\sum u|^2 - n}{n(n-1)}`.

    Parameters
    ----------
    vectors
        Shape [answers, dimension].

    Returns
    -------
    float or None
        None for less than two answers.

    Raises
    ------
    FusionError
        They are no vectors with a direction.
    """
    unit = unit_vectors(vectors)
    count = len(unit)
    if count < 2:  # noqa: PLR2004
        return None
    total = unit.sum(axis=0)
    return float(np.clip((total @ total - count) / (count * (count - 1)), -1.0, 1.0))


def jensen_shannon_divergence(distributions: np.ndarray, weights: Sequence[float] | None = None) -> float:
    r"""Generalised Jensen-Shannon divergence, in nats.

    :math:`H(\sum_i w_i P_i) - \sum_i w_i H(P_i)`, with the entropy H (Lin, Divergence measures based on the Shannon
    entropy, 1991). It is 0 where all are the same, and at most the entropy of the weights.

    Parameters
    ----------
    distributions
        Shape [members, outcomes]; each row sums to 1.
    weights
        Of the members, in any scale; equal by default.

    Raises
    ------
    FusionError
        Rows are no distributions, or weights are none.
    """
    rows, shares = _distributions(distributions, weights)
    return max(0.0, _entropy(shares @ rows) - float(shares @ np.array([_entropy(row) for row in rows])))


def divergence_coherence(distributions: np.ndarray, weights: Sequence[float] | None = None) -> float | None:
    r"""Agreement of distributions, from 0 (no outcome in common) to 1 (the same).

    :math:`1 - \mathrm{JSD}_w / H(w)`: the divergence as a share of its bound (Lin 1991, theorem 4).

    Returns
    -------
    float or None
        None where less than two have a weight.

    Raises
    ------
    FusionError
        As `jensen_shannon_divergence`.
    """
    rows, shares = _distributions(distributions, weights)
    if np.count_nonzero(shares) < 2 or (bound := _entropy(shares)) == 0:  # noqa: PLR2004
        return None
    return float(np.clip(1 - jensen_shannon_divergence(rows, shares.tolist()) / bound, 0.0, 1.0))


def _distributions(distributions: np.ndarray, weights: Sequence[float] | None) -> tuple[np.ndarray, np.ndarray]:
    rows = np.asarray(distributions, np.float64)
    if rows.ndim != _MATRIX or not rows.size or not (rows >= 0).all() or (abs(rows.sum(1) - 1) > _ROUNDING).any():
        raise FusionError("distributions have shape [members, outcomes], and each row sums to 1")
    shares = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)
    if shares.shape != (len(rows),) or not (shares >= 0).all() or not np.isfinite(shares).all() or not shares.any():
        raise FusionError(f"{len(rows)} weights are asked for, finite, 0 or more, and not all 0")
    shares = shares / shares.max()
    return rows / rows.sum(1, keepdims=True), shares / shares.sum()


def _entropy(shares: np.ndarray) -> float:
    known = shares[shares > 0]
    return float(-(known * np.log(known)).sum())

"""Rankings of candidates become one: the rules of Borda and of Copeland.

Borda
    A candidate has a point for each candidate that a ballot puts below it, and half a point for each beside it (de
    Borda 1781, Mémoire sur les élections au scrutin; with ties as in Young 1974, An axiomatization of Borda's rule).
Copeland
    A candidate has a point for each candidate that most of the weight puts below it, half a point for a draw (Copeland
    1951, A reasonable social welfare function): whoever beats each other one alone is first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def borda(ranks: Sequence[Sequence[float]], weights: Sequence[float]) -> np.ndarray:
    """Points of each candidate, as a share of the most there can be.

    Parameters
    ----------
    ranks
        Shape [ballots, candidates]: lesser is better, equals are ties.
    weights
        Of the ballots, 0 or more.

    Returns
    -------
    ndarray
        float64 of shape [candidates], from 0 to 1.
    """
    above = _weight_above(ranks, weights)
    most = float(sum(weights)) * (len(above) - 1)
    return above.sum(axis=1) / most if most > 0 else np.ones(len(above))


def copeland(ranks: Sequence[Sequence[float]], weights: Sequence[float]) -> np.ndarray:
    """Duels won by each candidate, as a share of all; parameters and result as of `borda`."""
    above = _weight_above(ranks, weights)
    # Sums of weights in another order differ in their last bits: that is a draw still.
    is_draw = np.isclose(above, above.T, rtol=1e-12, atol=0)
    points = np.where(is_draw, 0.5, above > above.T)
    np.fill_diagonal(points, 0)
    return points.sum(axis=1) / (len(above) - 1) if len(above) > 1 else np.ones(len(above))


def ranks_of_order(order: Sequence[int], count: int) -> list[float]:
    """A ballot of an order of candidates, best first; those that are not in it share the last place."""
    ranks = [float(len(order))] * count
    for rank, candidate in enumerate(order):
        ranks[candidate] = float(rank)
    return ranks


def _weight_above(ranks: Sequence[Sequence[float]], weights: Sequence[float]) -> np.ndarray:
    """Of shape [candidates, candidates]: the weight that puts one above the other, ties counted half."""
    ballots = np.asarray(ranks, np.float64)
    better = (ballots[:, :, None] < ballots[:, None, :]) + 0.5 * (ballots[:, :, None] == ballots[:, None, :])
    above: np.ndarray = np.einsum("b,bij->ij", np.asarray(weights, np.float64), better)
    np.fill_diagonal(above, 0)
    return above

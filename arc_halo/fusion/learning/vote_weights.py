"""Weights of votes from how often each member was right."""

from __future__ import annotations

import numpy as np

from arc_halo.errors import FusionError


def fit_vote_weights(is_right: np.ndarray, *, choices: int = 2, prior: float = 1.0) -> np.ndarray:
    """Weights of a weighted plurality: the log-odds of being right, 0 for members no better than chance.

    They are the best there are for members that err independently (Nitzan & Paroush, 1982); for several choices a wrong
    vote is taken to fall on any of the others.

    Parameters
    ----------
    is_right
        Of each member in each operation, shape [operations, members]; NaN where it did not answer.
    choices
        How many answers there are to choose from.
    prior
        Right and wrong answers that each member is taken to have given before (Laplace): few operations decide little.

    Returns
    -------
    ndarray
        float64 of shape [members], the greatest being 1 unless all are 0.
    """
    votes = np.asarray(is_right, np.float64)
    if votes.ndim != 2 or choices < 2:  # noqa: PLR2004  # axes; and with one choice there is no vote
        raise FusionError(f"votes of shape {list(votes.shape)} among {choices} choices cannot be weighed")
    answered = np.isfinite(votes).sum(axis=0)
    share = (np.nansum(votes, axis=0) + prior) / (answered + 2 * prior)
    odds = np.log(share * (choices - 1) / (1 - share))
    weights: np.ndarray = np.maximum(0.0, odds)
    most = weights.max(initial=0.0)
    return weights / most if most > 0 else weights

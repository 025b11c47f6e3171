"""Weights of pools of next-token distributions, fitted to text whose tokens are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from arc_halo.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Callable

Found: TypeAlias = "tuple[float, np.ndarray, np.ndarray]"

_STEPS: Final = 200
_TOLERANCE: Final = 1e-9
_BATCH_TOKENS: Final = 256
_RIDGE: Final = 1e-9
_NEAR: Final = 1e-3


def fit_linear_pool(log_probabilities: np.ndarray) -> np.ndarray:
    """Weights of a linear pool, which sum to 1, that make the tokens that came most probable.

    Minimised is ``sum_m w_m - mean log sum_m w_m p_m(token)`` over weights of 0 or more: it is convex, and at its
    minimum they sum to 1 (Kim, Carbonetto, Stephens & Anitescu, 2020). Newton's method gets there in
    a few steps, where expectation-maximisation takes thousands if members are alike.

    Parameters
    ----------
    log_probabilities
        Of the tokens that came, under each member, float of shape [tokens, members], in nats.

    Returns
    -------
    ndarray
        float64 of shape [members].

    Raises
    ------
    FusionError
        They are of another shape, or not finite.
    """
    scores = np.asarray(_checked(log_probabilities, 2), np.float64)
    likelihoods = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights = _minimised(lambda each: _linear_pool(likelihoods, each), scores.shape[1])
    shares: np.ndarray = weights / weights.sum()
    return shares


def fit_log_pool(log_probabilities: np.ndarray, token_ids: np.ndarray) -> np.ndarray:
    """Weights of a logarithmic pool, 0 or more, that make the tokens that came most probable.

    Minimised is the mean of ``logsumexp_v(sum_m w_m log p_m(v)) - sum_m w_m log p_m(token)``, which is convex in the
    weights (they are the parameters of an exponential family), by Newton's method with the weights held at 0 or more.
    They need not sum to 1: members that are sure, and right, together may be surer than each.

    Parameters
    ----------
    log_probabilities
        Of all tokens of the vocabulary under each member, float of shape [tokens, members, vocabulary], in nats.
    token_ids
        The tokens that came, of shape [tokens].

    Returns
    -------
    ndarray
        float64 of shape [members].

    Raises
    ------
    FusionError
        They are of another shape, or not finite; or there are not as many tokens.
    """
    scores = _checked(log_probabilities, 3)
    if np.shape(token_ids) != scores.shape[:1]:
        raise FusionError(f"there are {np.size(token_ids)} tokens that came for {len(scores)} distributions")
    return _minimised(lambda each: _log_pool(scores, token_ids, each), scores.shape[1])


def _minimised(objective: Callable[[np.ndarray], Found], count: int) -> np.ndarray:
    """Where a convex function of weights of 0 or more is least: projected Newton steps (Bertsekas, 1982).

    Weights near 0 that the gradient pushes against it go along the gradient, not Newton's way: together with the others
    they might lead upwards.

    Parameters
    ----------
    objective
        Its value with gradient and Hessian.
    """
    weights = np.full(count, 1 / count)
    loss, gradient, hessian = objective(weights)
    for _ in range(_STEPS):
        residual = np.abs(weights - np.maximum(0.0, weights - gradient)).max()
        if residual < _TOLERANCE:
            break
        held = (weights <= min(_NEAR, residual)) & (gradient > 0)
        step = -gradient
        inner = hessian[np.ix_(~held, ~held)] + _RIDGE * np.eye(int((~held).sum()))
        step[~held] = -np.linalg.solve(inner, gradient[~held])
        scale = 1.0
        while True:
            candidate = np.maximum(0.0, weights + scale * step)
            found = objective(candidate)
            if found[0] < loss or scale < _TOLERANCE:
                break
            scale /= 2
        if not found[0] < loss:  # as near as rounding allows
            break
        weights, (loss, gradient, hessian) = candidate, found
    return weights


def _linear_pool(likelihoods: np.ndarray, weights: np.ndarray) -> Found:
    """The loss of `fit_linear_pool` with its gradient and Hessian; infinite where a token has no probability."""
    pooled = likelihoods @ weights
    if not (pooled > 0).all():
        return np.inf, weights, np.zeros((len(weights), len(weights)))
    ratios = likelihoods / pooled[:, None]
    count = len(likelihoods)
    loss = float(weights.sum() - np.log(pooled).mean())
    return loss, 1 - ratios.mean(axis=0), ratios.T @ ratios / count


def log_pool_loss(log_probabilities: np.ndarray, token_ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Nats of each token under a logarithmic pool, float64 of shape [tokens]; shapes as in `fit_log_pool`."""
    losses = []
    for start in range(0, len(token_ids), _BATCH_TOKENS):
        part = np.asarray(log_probabilities[start : start + _BATCH_TOKENS], np.float64)
        pooled, normalizer = _pooled(part, weights)
        tokens = token_ids[start : start + _BATCH_TOKENS]
        losses.append(normalizer - pooled[np.arange(len(tokens)), tokens])
    return np.concatenate(losses)


def _log_pool(scores: np.ndarray, token_ids: np.ndarray, weights: np.ndarray) -> Found:
    """Mean loss with its gradient and Hessian: means and covariances of scores under the pool."""
    members = scores.shape[1]
    loss, gradient, hessian = 0.0, np.zeros(members), np.zeros((members, members))
    for start in range(0, len(token_ids), _BATCH_TOKENS):
        part = np.asarray(scores[start : start + _BATCH_TOKENS], np.float64)
        tokens = token_ids[start : start + _BATCH_TOKENS]
        rows = np.arange(len(tokens))
        pooled, normalizer = _pooled(part, weights)
        probabilities = np.exp(pooled - normalizer[:, None])
        means = np.einsum("tmv,tv->tm", part, probabilities)
        loss += float((normalizer - pooled[rows, tokens]).sum())
        gradient += (means - part[rows, :, tokens]).sum(axis=0)
        centred = part - means[:, :, None]
        hessian += np.einsum("tmv,tnv,tv->mn", centred, centred, probabilities, optimize=True)
    count = len(token_ids)
    return loss / count, gradient / count, hessian / count


def _pooled(scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pooled = np.einsum("tmv,m->tv", scores, weights)
    most = pooled.max(axis=1)
    return pooled, most + np.log(np.exp(pooled - most[:, None]).sum(axis=1))


def _checked(log_probabilities: np.ndarray, rank: int) -> np.ndarray:
    array = np.asarray(log_probabilities)
    if array.ndim != rank or not array.shape[0] or not array.shape[1]:
        raise FusionError(f"log-probabilities of shape {list(array.shape)} are not those of tokens and members")
    if not np.isfinite(array).all():
        raise FusionError("a token that a member gives no probability at all cannot be pooled: smooth it first")
    return array

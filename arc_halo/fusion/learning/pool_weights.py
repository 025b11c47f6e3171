"""Weights of pools of next-token distributions, fitted to text whose tokens are known."""

from __future__ import annotations

from typing import Final

import numpy as np

from arc_halo.errors import FusionError

_STEPS: Final = 200
_TOLERANCE: Final = 1e-9
_BATCH_TOKENS: Final = 256
_RIDGE: Final = 1e-9


def fit_linear_pool(log_probabilities: np.ndarray) -> np.ndarray:
    """Weights of a linear pool, which sum to 1, by expectation-maximisation (Dempster, Laird & Rubin, 1977).

    The likelihood of a mixture is concave in its weights, so that this is the best there is.

    Parameters
    ----------
    log_probabilities
        Of the tokens that came, under each member, float of shape [tokens, members], in nats.

    Returns
    -------
    ndarray
        float64 of shape [members].
    """
    scores = _checked(log_probabilities, 2)
    likelihoods = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights = np.full(scores.shape[1], 1 / scores.shape[1])
    for _ in range(_STEPS):
        shares = likelihoods * weights
        shares /= shares.sum(axis=1, keepdims=True)
        updated = shares.mean(axis=0)
        if np.abs(updated - weights).max() < _TOLERANCE:
            break
        weights = updated
    return weights


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
    """
    scores = _checked(log_probabilities, 3)
    weights = np.full(scores.shape[1], 1 / scores.shape[1])
    loss, gradient, hessian = _log_pool(scores, token_ids, weights)
    for _ in range(_STEPS):
        free = (weights > 0) | (gradient < 0)
        if not free.any() or np.abs(gradient[free]).max() < _TOLERANCE:
            break
        step = np.zeros_like(weights)
        inner = hessian[np.ix_(free, free)] + _RIDGE * np.eye(int(free.sum()))
        step[free] = -np.linalg.solve(inner, gradient[free])
        scale = 1.0
        while True:
            candidate = np.maximum(0.0, weights + scale * step)
            found = _log_pool(scores, token_ids, candidate)
            if found[0] <= loss or scale < _TOLERANCE:
                break
            scale /= 2
        gained = loss - found[0]
        if gained <= 0:
            break
        weights, (loss, gradient, hessian) = candidate, found
        if gained < _TOLERANCE:
            break
    return weights


def log_pool_loss(log_probabilities: np.ndarray, token_ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Nats of each token under a logarithmic pool, float64 of shape [tokens]; shapes as in `fit_log_pool`."""
    losses = []
    for start in range(0, len(token_ids), _BATCH_TOKENS):
        part = np.asarray(log_probabilities[start : start + _BATCH_TOKENS], np.float64)
        pooled, normalizer = _pooled(part, weights)
        tokens = token_ids[start : start + _BATCH_TOKENS]
        losses.append(normalizer - pooled[np.arange(len(tokens)), tokens])
    return np.concatenate(losses)


def _log_pool(scores: np.ndarray, token_ids: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
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

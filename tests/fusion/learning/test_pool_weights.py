"""Fitted weights are those that make what came most probable."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_halo.errors import FusionError
from arc_halo.fusion.learning import fit_linear_pool, fit_log_pool
from arc_halo.fusion.learning.pool_weights import log_pool_loss


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def pooled_text(weights, tokens=4000, vocabulary=12, seed=0):
    """Distributions of members, and tokens drawn from their log pool with those weights."""
    random = np.random.default_rng(seed)
    scores = log_softmax(random.normal(0, 1.5, size=(tokens, len(weights), vocabulary)))
    pooled = np.exp(log_softmax(np.einsum("tmv,m->tv", scores, weights)))
    drawn = (pooled.cumsum(1) > random.random((tokens, 1))).argmax(1)
    return scores, drawn


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.2, 0.0), (0.5, 0.9, 0.2)])
def test_a_log_pool_is_found_again(weights):
    scores, tokens = pooled_text(np.array(weights))
    assert fit_log_pool(scores, tokens) == pytest.approx(weights, abs=0.08)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_no_other_weights_are_better(seed, members):
    random = np.random.default_rng(seed)
    scores, tokens = pooled_text(random.random(members), tokens=80, seed=seed)
    fitted = fit_log_pool(scores, tokens)
    assert (fitted >= 0).all()
    best = log_pool_loss(scores, tokens, fitted).mean()
    for _ in range(20):
        other = np.maximum(0, fitted + random.normal(0, 0.3, size=members))
        assert log_pool_loss(scores, tokens, other).mean() >= best - 1e-7


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_no_other_mixture_is_better(seed, members):
    random = np.random.default_rng(seed)
    scores = np.log(random.random((60, members)) + 1e-3)
    fitted = fit_linear_pool(scores)
    assert fitted.sum() == pytest.approx(1)

    def loss(weights):
        return -np.log(np.exp(scores) @ weights).mean()

    for _ in range(20):
        assert loss(random.dirichlet(np.ones(members))) >= loss(fitted) - 1e-5


def test_of_members_that_are_nearly_alike_the_better_one_stays():
    random = np.random.default_rng(0)
    scores = random.normal(-3, 0.3, size=(5000, 3))
    scores[:, 1] = scores[:, 0] + random.normal(0.001, 0.05, size=5000)
    ratios = np.exp(scores)
    ratios /= (ratios @ fit_linear_pool(scores))[:, None]
    # What Karush, Kuhn and Tucker ask for: nobody could be given more.
    assert ratios.mean(axis=0).max() == pytest.approx(1, abs=1e-7)


def test_a_member_that_knows_nothing_gets_nothing():
    scores, tokens = pooled_text(np.array([1.0]))
    useless = np.full_like(scores, -np.log(scores.shape[2]))
    weights = fit_linear_pool(np.stack([s[np.arange(len(tokens)), 0, tokens] for s in (scores, useless)], 1))
    assert weights[0] > 0.95


def test_impossible_tokens_are_refused():
    with pytest.raises(FusionError, match="smooth"):
        fit_linear_pool(np.array([[0.0, -np.inf]]))
    with pytest.raises(FusionError, match="shape"):
        fit_log_pool(np.zeros((3, 2)), np.zeros(3, int))
    with pytest.raises(FusionError, match="2 tokens that came for 3"):
        fit_log_pool(np.zeros((3, 2, 4)), np.zeros(2, int))

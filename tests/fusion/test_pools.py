"""Opinion pools against the formulas in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from arc_halo.errors import FusionError
from arc_halo.fusion.metrics.coherence import divergence_coherence
from arc_halo.fusion.pools import Pool, pooled_coherence

finite = st.floats(-30, 30, width=32)
gates = st.sampled_from([None, "entropy", "confidence"])
methods = st.sampled_from(["linear", "log"])


@st.composite
def opinions(draw):
    members, size = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    logits = draw(arrays(np.float32, (members, size), elements=finite))
    weights = draw(st.lists(st.floats(0.01, 10), min_size=members, max_size=members))
    return list(logits), weights


def softmax(logits):
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def expected(method, gate, logits, weights):
    """The formulas, as they are written down."""
    opinions = [softmax(np.asarray(each, np.float64)) for each in logits]
    gated = []
    for opinion, weight in zip(opinions, weights, strict=True):
        entropy = -sum(p * np.log(p) for p in opinion if p > 0)
        gated.append(weight * {None: 1, "entropy": np.exp(-entropy), "confidence": opinion.max()}[gate])
    gated = np.array(gated) / sum(gated)
    if method == "linear":
        return gated @ np.array(opinions), gated
    with np.errstate(divide="ignore"):
        return softmax(gated @ np.log(opinions)), gated


@given(opinions(), methods, gates)
def test_a_pool_is_what_its_formula_says(opinion, method, gate):
    pooled = Pool(method, gate)(*opinion)
    joint, weights = expected(method, gate, *opinion)
    np.testing.assert_allclose(np.exp(pooled.log_probabilities.astype(np.float64)), joint, rtol=2e-4, atol=1e-7)
    np.testing.assert_allclose(pooled.weights, weights, rtol=1e-4)
    assert pooled.log_probabilities.dtype == np.float32


def test_a_pool_of_a_whole_vocabulary_is_what_its_formula_says():
    random = np.random.default_rng(1)
    logits = [random.normal(0, 4, 50_257).astype(np.float32) for _ in range(3)]
    for method, gate in [("linear", None), ("log", None), ("linear", "entropy"), ("log", "confidence")]:
        pooled = Pool(method, gate)(logits, [1, 2, 0.5])
        joint, _ = expected(method, gate, logits, [1, 2, 0.5])
        np.testing.assert_allclose(np.exp(pooled.log_probabilities), joint, rtol=1e-4, atol=1e-12)


@given(opinions(), methods, gates)
def test_members_that_agree_change_nothing(opinion, method, gate):
    (first, *_), weights = opinion
    pooled = Pool(method, gate)([first] * len(weights), weights)
    np.testing.assert_allclose(np.exp(pooled.log_probabilities), softmax(first), rtol=1e-3, atol=1e-6)


@given(opinions(), arrays(np.float32, 40, elements=st.floats(-5, 5, width=32)))
def test_the_logarithmic_pool_is_externally_bayesian(opinion, evidence):
    logits, weights = opinion
    seen = evidence[: len(logits[0])]
    pool = Pool("log")
    after = softmax(pool(logits, weights).log_probabilities.astype(np.float64) + seen)
    before = np.exp(pool([each + seen for each in logits], weights).log_probabilities)
    np.testing.assert_allclose(before, after, rtol=1e-3, atol=1e-6)


@given(opinions(), methods, st.floats(-50, 50, width=32))
def test_log_normalizers_make_log_probabilities(opinion, method, shift):
    logits, weights = opinion
    shifted = [each + np.float32(shift) for each in logits]
    normalizers = Pool(method)(shifted, weights).log_normalizers
    for each, normalizer in zip(shifted, normalizers, strict=True):
        assert np.exp(each.astype(np.float64) - normalizer).sum() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("gate", [None, "entropy", "confidence"])
def test_what_cannot_be_is_kept_apart(gate):
    nothing = -np.inf
    left, right = np.array([0, nothing, 0], np.float32), np.array([nothing, 0, 0], np.float32)
    linear = np.exp(Pool("linear", gate)([left, right], [1, 1]).log_probabilities)
    np.testing.assert_allclose(linear, [0.25, 0.25, 0.5], rtol=1e-5)
    both = np.exp(Pool("log", gate)([left, right], [1, 1]).log_probabilities)
    np.testing.assert_allclose(both, [0, 0, 1])


def test_where_nothing_is_possible_for_all_the_linear_pool_is_taken():
    nothing = -np.inf
    pooled = Pool("log")([np.array([0, nothing]), np.array([nothing, 0])], [3, 1])
    assert pooled.method == "linear"
    np.testing.assert_allclose(np.exp(pooled.log_probabilities), [0.75, 0.25], rtol=1e-6)


def test_weights_of_nothing_count_alike_and_one_of_nothing_not_at_all():
    logits = [np.log([0.5, 0.5]), np.log([0.9, 0.1])]
    assert Pool("linear")(logits, [0, 0]).weights == (0.5, 0.5)
    np.testing.assert_allclose(np.exp(Pool("log")(logits, [0, 2]).log_probabilities), [0.9, 0.1], rtol=1e-5)


@pytest.mark.parametrize(
    ("logits", "weights"),
    [([], []), ([np.zeros(2), np.zeros(3)], [1, 1]), ([np.zeros(2)], [1, 1]), ([np.full(2, -np.inf)], [1])],
)
def test_what_cannot_be_pooled_is_refused(logits, weights):
    with pytest.raises(FusionError):
        Pool("linear")(logits, weights)


def test_weights_may_count_as_they_are():
    left, right = np.log([0.5, 0.3, 0.2]), np.log([0.6, 0.3, 0.1])
    product = np.exp(1.5 * left + 0.5 * right)
    pooled = Pool("log", normalize=False)([left, right], [1.5, 0.5])
    assert np.exp(pooled.log_probabilities) == pytest.approx(product / product.sum(), rel=1e-5)
    assert pooled.weights == pytest.approx((1.5, 0.5))
    alone = Pool("log", normalize=False)([left], [2.0])
    assert np.exp(alone.log_probabilities) == pytest.approx(np.square([0.5, 0.3, 0.2]) / 0.38, rel=1e-5)


@pytest.mark.parametrize("method", ["linear", "log"])
@pytest.mark.parametrize("weights", [[1, 1e-60], [1e-60, 1]])
def test_weights_too_small_for_a_number_leave_no_trace(method, weights):
    nothing = -np.inf
    logits = [np.array([0, nothing, 0], np.float32), np.array([nothing, 0, 0], np.float32)]
    heavy = logits[weights.index(1)] - np.log(np.float32(2))
    np.testing.assert_allclose(Pool(method)(logits, weights).log_probabilities, heavy, rtol=1e-6)


@pytest.mark.parametrize("method", ["linear", "log"])
def test_the_weight_of_who_holds_nothing_possible_goes_to_the_others(method):
    logits = [np.full(2, -np.inf, np.float32), np.log(np.array([0.2, 0.8], np.float32))]
    pooled = Pool(method)(logits, [1, 1e-60])
    np.testing.assert_allclose(np.exp(pooled.log_probabilities), [0.2, 0.8], rtol=1e-6)
    assert pooled.weights == (0, 1)


@given(opinions())
def test_coherence_is_one_less_the_divergence_as_a_share_of_its_bound(opinion):
    logits, weights = opinion
    pooled = Pool("linear")(logits, weights)
    shares = np.exp(np.array(logits, np.float64) - np.array(pooled.log_normalizers)[:, None])
    counted = weights if any(weights) else [1.0] * len(weights)
    agreement = divergence_coherence(shares / shares.sum(1, keepdims=True), counted)
    found = pooled_coherence(logits, pooled.log_normalizers, weights)
    assert found == (None if agreement is None else pytest.approx(agreement, abs=2e-3))

"""Figures against values worked out by hand, and the bounds that hold for all input."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from arc_halo.errors import FusionError
from arc_halo.fusion.metrics import (
    brier_score,
    divergence_coherence,
    exact_match,
    expected_calibration_error,
    jensen_shannon_divergence,
    mean_pairwise_cosine,
    pairwise_disagreement,
    q_statistic,
    self_bleu,
    vendi_score,
)
from arc_halo.fusion.metrics.diversity import bleu

near = pytest.approx
shares = st.floats(0, 1).map(lambda value: round(value, 3))


def test_mean_pairwise_cosine():
    assert mean_pairwise_cosine(np.array([[1, 0], [0, 2], [3, 0]])) == near(1 / 3)
    assert mean_pairwise_cosine(np.array([[1, 0], [-1, 0]])) == -1
    assert mean_pairwise_cosine(np.array([[1, 0]])) is None
    with pytest.raises(FusionError, match="no direction"):
        mean_pairwise_cosine(np.zeros((2, 3)))


def test_jensen_shannon_divergence():
    assert jensen_shannon_divergence(np.eye(2)) == near(math.log(2))
    # H((3/4, 1/4)) - 1/2 H((1/2, 1/2))
    assert jensen_shannon_divergence(np.array([[1, 0], [0.5, 0.5]])) == near(0.5623351446 - 0.3465735903)


def test_coherence_of_distributions_is_a_share_of_the_bound():
    assert divergence_coherence(np.eye(3), [1, 2, 5]) == near(0)
    assert divergence_coherence(np.array([[0.2, 0.8], [0.2, 0.8]]), [1, 9]) == near(1)
    # two of three votes agree: H(2/3, 1/3) / H(1/3, 1/3, 1/3)
    assert divergence_coherence(np.array([[1, 0], [1, 0], [0, 1]])) == near(1 - 0.6365141683 / math.log(3))
    assert divergence_coherence(np.eye(2), [1, 0]) is None
    with pytest.raises(FusionError, match="sums to 1"):
        divergence_coherence(np.ones((2, 2)))


@given(arrays(np.float64, (3, 4), elements=st.floats(0.01, 1)), st.lists(st.floats(0.01, 100), min_size=3, max_size=3))
def test_coherence_of_distributions_stays_within_its_bounds(table, weights):
    rows = table / table.sum(axis=1, keepdims=True)
    assert 0 <= divergence_coherence(rows, weights) <= 1
    assert divergence_coherence(np.repeat(rows[:1], 3, axis=0), weights) == near(1)


def test_vendi_score():
    assert vendi_score(np.eye(4)) == near(4)
    assert vendi_score(np.ones((5, 3))) == near(1)
    assert vendi_score(np.array([[1, 0], [1, 0], [0, 1], [0, 1]])) == near(2)


@given(arrays(np.float64, (4, 3), elements=st.floats(0.001, 1e6)))
def test_vendi_score_counts_between_one_and_all(vectors):
    score = vendi_score(vectors)
    assert 1 <= score <= 4
    assert vendi_score(vectors[::-1] * 7) == near(score)


def test_disagreement_and_q():
    right = np.array([[1, 1], [1, 1], [1, 0], [0, 1], [0, 0], [1, np.nan]])
    assert pairwise_disagreement(right) == near(2 / 5)
    assert q_statistic(right) == near((2 * 1 - 1 * 1) / (2 * 1 + 1 * 1))
    assert q_statistic(np.array([[1, 0], [0, 1]])) == -1
    assert q_statistic(np.array([[1, 1], [1, 1]])) is None
    assert pairwise_disagreement(np.array([[1, np.nan], [np.nan, 0]])) is None


@given(arrays(np.float64, (9, 3), elements=st.sampled_from([0.0, 1.0])))
def test_q_is_between_minus_one_and_one(right):
    q = q_statistic(right)
    assert q is None or -1 <= q <= 1
    assert q_statistic(right[:, ::-1]) == (None if q is None else near(q))


def test_bleu():
    # words 2/3; pairs (1 + 1) / (2 + 1); triples (0 + 1) / (1 + 1)
    assert bleu("the cat sat", ["the cat lay"]) == near((2 / 3 * 2 / 3 * 1 / 2) ** (1 / 3))
    assert bleu("the the", ["the cat"]) == near((1 / 2 * 1 / 2) ** (1 / 2))  # clipped
    assert bleu("The cat", ["the cat is on the mat"]) == near(math.exp(1 - 6 / 2))  # too short
    assert bleu("dog", ["cat"]) == 0
    assert bleu("", [""]) == 1


def test_self_bleu():
    assert self_bleu(["yes", "yes", "no"]) == near(2 / 3)
    assert self_bleu(["one"]) is None


@given(st.lists(st.text("ab .", max_size=12), min_size=2, max_size=4))
def test_self_bleu_is_a_share_and_one_for_the_same(texts):
    assert 0 <= self_bleu(texts) <= 1
    assert self_bleu([texts[0]] * 3) == near(1)


def test_calibration():
    scores, right = np.array([0.9, 0.9, 0.1, 0.3]), np.array([1, 0, 0, 1])
    # bins of two: (0.1, 0.3) right by a half, (0.9, 0.9) by a half
    assert expected_calibration_error(scores, right, bins=2) == near(0.5 * abs(0.5 - 0.2) + 0.5 * abs(0.5 - 0.9))
    assert brier_score(scores, right) == near((0.01 + 0.81 + 0.01 + 0.49) / 4)
    assert expected_calibration_error(np.array([]), np.array([])) is None
    with pytest.raises(FusionError, match="from 0 to 1"):
        brier_score(np.array([1.5]), np.array([1]))


@given(st.lists(st.tuples(shares, st.sampled_from([0, 1])), min_size=1, max_size=30))
def test_calibration_is_bounded_and_perfect_for_the_truth(pairs):
    scores, right = (np.array(each, float) for each in zip(*pairs, strict=True))
    assert 0 <= expected_calibration_error(scores, right) <= 1
    assert expected_calibration_error(right, right) == brier_score(right, right) == 0
    # Jensen: within one bin the error is at most the root of the Brier score.
    assert expected_calibration_error(scores, right, bins=1) ** 2 <= brier_score(scores, right) + 1e-12


@pytest.mark.parametrize(
    ("answer", "is_right"), [("Paris.", 1), (' "PARIS" ', 1), ("pari s", 0), ("-5", 0), ("5.", 0), ("", 0), ("?", 0)]
)
def test_answers_are_compared_without_what_does_not_matter(answer, is_right):
    assert exact_match(answer, "paris") == is_right


def test_numbers_keep_their_sign_and_point():
    assert exact_match("-5", "5") == exact_match(".5", "5") == exact_match("1.5", "15") == 0
    assert exact_match("?", "?") == 1

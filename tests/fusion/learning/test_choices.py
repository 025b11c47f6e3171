"""Votes, thresholds, calibration and the worth of what was not chosen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arc_halo.errors import FusionError
from arc_halo.fusion.learning import calibrate, estimate_value, fit_cascade, fit_vote_weights
from arc_halo.fusion.learning.thresholds import run_cascade


def test_votes_weigh_as_much_as_members_are_right():
    random = np.random.default_rng(0)
    weights = fit_vote_weights(random.random((2000, 3)) < [0.9, 0.7, 0.45])
    assert weights[0] == 1
    assert weights[1] == pytest.approx(np.log(7 / 3) / np.log(9), abs=0.06)
    assert weights[2] == 0
    assert fit_vote_weights(np.full((4, 2), np.nan)).tolist() == [0, 0]


def test_weighted_votes_are_better_than_equal_ones():
    random = np.random.default_rng(1)
    right = random.random((4000, 3)) < [0.9, 0.6, 0.6]
    weights = fit_vote_weights(right[:2000])
    signs = np.where(right[2000:], 1, -1)
    assert (signs @ weights > 0).mean() > (signs.sum(1) > 0).mean() + 0.02


def answers(count=6000, seed=0):
    """A cheap member that knows when it is right, and a dear one that is better."""
    random = np.random.default_rng(seed)
    easy = random.random(count)
    quality = np.stack([random.random(count) < easy, random.random(count) < 0.8], 1).astype(float)
    return np.stack([easy, np.ones(count)], 1), quality, np.tile([1.0, 10.0], (count, 1))


def test_a_cascade_costs_less_for_the_same_quality():
    fitted = fit_cascade(*answers())
    quality, cost = run_cascade(*answers(seed=1), fitted.thresholds)
    _, alone, _ = answers(seed=1)
    assert cost.mean() < 9.5
    assert quality.mean() > alone[:, 1].mean() - 0.02
    assert fit_cascade(*answers(), most_cost=1.0).thresholds[0] <= answers()[0][:, 0].min()
    with pytest.raises(FusionError, match="no thresholds"):
        fit_cascade(*answers(), least_quality=1.0)


@pytest.mark.parametrize("seed", range(20))
def test_what_the_best_member_gives_can_always_be_reached(seed):
    random = np.random.default_rng(seed)
    worse = random.random(57)
    quality = np.stack([worse, worse + random.random(57) * 0.3], 1)
    fitted = fit_cascade(random.random((57, 2)), quality, np.tile([1.0, 10.0], (57, 1)))
    assert fitted.quality == pytest.approx(quality[:, 1].mean())


def test_more_members_than_thresholds_can_be_tried_of_are_refused():
    with pytest.raises(FusionError, match="at most 12 members"):
        fit_cascade(np.ones((5, 20)), np.ones((5, 20)), np.ones((5, 20)))


def test_whom_a_cascade_reaches_it_pays_for():
    confidence = np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.1, 0.1, 0.0]])
    quality, cost = np.array([[1.0, 2.0, 3.0]] * 3), np.array([[1.0, 10.0, 100.0]] * 3)
    found = run_cascade(confidence, quality, cost, (0.5, 0.5))
    assert found[0].tolist() == [1, 2, 3]
    assert found[1].tolist() == [1, 11, 111]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=60))
def test_calibrated_confidence_rises_and_keeps_the_mean(pairs):
    confidence = np.array([pair[0] for pair in pairs], float)
    right = np.array([pair[1] for pair in pairs], float)
    levels, probability = calibrate(confidence, right)
    assert (np.diff(probability) >= 0).all()
    assert np.interp(confidence, levels, probability).mean() == pytest.approx(right.mean())


def logged(count=4000, seed=0):
    """Two members chosen by chance; the second is better."""
    random = np.random.default_rng(seed)
    chose_second = random.random(count) < 0.3
    quality = (random.random(count) < np.where(chose_second, 0.8, 0.4)).astype(float)
    return quality, np.where(chose_second, 0.3, 0.7), chose_second.astype(float)


@pytest.mark.parametrize("method", ["ips", "snips", "dr"])
def test_the_worth_of_always_choosing_the_second(method):
    quality, propensity, probability = logged()
    model = {"predicted": np.full(4000, 0.7), "predicted_chosen": np.where(probability > 0, 0.7, 0.5)}
    found = estimate_value(quality, propensity, probability, method=method, **(model if method == "dr" else {}))
    assert found.value.low < 0.8 < found.value.high
    assert found.value.high - found.value.low < 0.2
    assert found.effective_count == pytest.approx(1200, rel=0.1)
    assert found.is_reliable


def test_what_was_never_chosen_has_no_worth_that_could_be_told():
    with pytest.raises(FusionError, match="nothing that was ever chosen"):
        estimate_value(np.ones(3), np.ones(3), np.zeros(3))
    with pytest.raises(FusionError, match="propensity"):
        estimate_value(np.ones(3), np.zeros(3), np.ones(3))
    with pytest.raises(FusionError, match="predictions"):
        estimate_value(np.ones(3), np.ones(3), np.ones(3), method="dr")


def test_a_policy_that_was_seldom_followed_may_be_worth_anything():
    quality = np.r_[np.ones(10), np.zeros(10)]
    found = estimate_value(quality, np.full(20, 0.5), np.eye(20)[0])
    assert (found.value.mean, found.value.low, found.value.high) == (1.0, 0.0, 1.0)
    assert not found.is_reliable


@pytest.mark.parametrize(
    ("probability", "options", "said"),
    [
        (np.full(3, 1.5), {}, "from 0 to 1"),
        (np.full(3, -0.5), {}, "from 0 to 1"),
        (np.ones(2), {}, "one each"),
        (np.ones(3), {"method": "dr", "predicted": np.ones(2), "predicted_chosen": np.ones(3)}, "one each"),
    ],
)
def test_what_is_no_policy_is_refused(probability, options, said):
    with pytest.raises(FusionError, match=said):
        estimate_value(np.ones(3), np.ones(3), probability, **options)

"""What the rules of Borda and Copeland promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.fusion.rankings import borda, copeland, ranks_of_order

RULES = [borda, copeland]


@st.composite
def elections(draw):
    candidates, ballots = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    places = st.lists(st.integers(0, 4), min_size=candidates, max_size=candidates)
    ranks = draw(st.lists(places, min_size=ballots, max_size=ballots))
    return ranks, draw(st.lists(st.integers(1, 9), min_size=ballots, max_size=ballots))


def test_points_of_a_textbook_election():
    # Tennessee's capital: Memphis, Nashville, Chattanooga, Knoxville.
    ranks, weights = [[0, 1, 2, 3], [3, 0, 1, 2], [3, 2, 0, 1], [3, 2, 1, 0]], [42, 26, 15, 17]
    assert (borda(ranks, weights) * 300).round().tolist() == [126, 194, 173, 107]
    assert (copeland(ranks, weights) * 3).round().tolist() == [0, 3, 2, 1]


@given(elections())
def test_borda_counts_who_is_below(election):
    ranks, weights = election
    count = len(ranks[0])
    points = [
        sum(
            weight * sum((ranked[i] < ranked[j]) + (ranked[i] == ranked[j]) / 2 for j in range(count) if j != i)
            for ranked, weight in zip(ranks, weights, strict=True)
        )
        for i in range(count)
    ]
    wanted = np.array(points) / (sum(weights) * (count - 1)) if count > 1 else [1]
    np.testing.assert_allclose(borda(ranks, weights), wanted)


@given(elections())
def test_who_beats_each_other_one_is_first_by_copeland(election):
    ranks, weights = election
    points = copeland(ranks, weights)
    array, voters = np.array(ranks), np.array(weights)
    for each in range(array.shape[1]):
        others = [other for other in range(array.shape[1]) if other != each]
        if all(voters[array[:, each] < array[:, o]].sum() > voters[array[:, each] > array[:, o]].sum() for o in others):
            assert points[each] == 1
            assert (points < 1).sum() == len(others)


@pytest.mark.parametrize("rule", RULES)
@given(elections(), st.randoms(use_true_random=False))
def test_names_of_candidates_and_order_of_ballots_make_no_difference(rule, election, random):
    ranks, weights = election
    order = random.sample(range(len(ranks[0])), len(ranks[0]))
    ballots = random.sample(range(len(ranks)), len(ranks))
    shuffled = rule([[ranks[b][c] for c in order] for b in ballots], [weights[b] for b in ballots])
    np.testing.assert_allclose(shuffled, rule(ranks, weights)[order])


@pytest.mark.parametrize("rule", RULES)
@given(elections())
def test_points_are_shares_and_half_of_them_are_given(rule, election):
    points = rule(*election)
    assert ((points >= 0) & (points <= 1)).all()
    assert points.mean() == pytest.approx(0.5 if len(points) > 1 else 1)


def test_who_is_not_in_an_order_shares_the_last_place():
    assert ranks_of_order([2, 0], 4) == [1, 2, 0, 2]

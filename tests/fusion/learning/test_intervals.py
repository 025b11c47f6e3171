"""Intervals hold what they say they hold."""

import numpy as np
import pytest

from arc_halo.errors import FusionError
from arc_halo.fusion.learning import bootstrap, paired_bootstrap
from arc_halo.fusion.learning.intervals import bootstrap_ratio


def test_an_interval_holds_the_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for number in range(200):
        found = bootstrap(random.normal(3, 2, size=60), resamples=400, seed=number, level=0.9)
        hits += found.low <= 3 <= found.high
    assert 165 <= hits <= 192


def test_what_belongs_together_is_drawn_together():
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), 50)
    values = random.normal(0, 1, size=20)[groups] + random.normal(0, 0.1, size=1000)
    alone, together = bootstrap(values), bootstrap(values, groups=groups)
    assert together.mean == pytest.approx(values.mean())
    assert together.high - together.low > 4 * (alone.high - alone.low)


def test_pairs_tell_what_means_do_not():
    random = np.random.default_rng(2)
    theirs = random.normal(0, 10, size=200)
    ours = theirs + random.normal(0.5, 0.5, size=200)
    assert paired_bootstrap(ours, theirs).excludes_zero
    assert not bootstrap(ours).excludes_zero
    assert str(paired_bootstrap(ours, theirs)).startswith("0.")


def test_a_ratio_is_that_of_sums():
    found = bootstrap_ratio(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0]))
    assert found.mean == pytest.approx(1)
    assert found.low < 1 < found.high


@pytest.mark.parametrize("values", [np.array([]), np.array([1.0, np.nan])])
def test_no_interval_of_nothing(values):
    with pytest.raises(FusionError):
        bootstrap(values)


def test_pairs_must_be_pairs():
    with pytest.raises(FusionError):
        paired_bootstrap(np.zeros(3), np.zeros(4))


def test_of_each_stratum_as_many_are_drawn_as_there_are():
    strata = np.repeat([0, 1], 50)
    values = np.where(strata == 0, 10.0, -10.0) + np.random.default_rng(3).normal(0, 1, size=100)
    alone, stratified = bootstrap(values), bootstrap(values, strata=strata)
    assert stratified.high - stratified.low < (alone.high - alone.low) / 5
    with pytest.raises(FusionError, match="one stratum"):
        bootstrap(values, groups=np.arange(100) % 50, strata=strata)


@pytest.mark.parametrize("labels", [[("a", 1), ("a", 1), ("b", 1)], np.array([0, 0, 1])], ids=["tuples", "numbers"])
def test_labels_are_whatever_can_be_told_apart(labels):
    values = np.array([1.0, 2.0, 9.0])
    found = bootstrap(values, groups=labels)
    assert (found.mean, found.low, found.high) == (4.0, 1.5, 9.0)


@pytest.mark.parametrize("name", ["groups", "strata"])
def test_each_value_has_a_label(name):
    with pytest.raises(FusionError, match=f"2 {name} for 4 values"):
        bootstrap(np.arange(4.0), **{name: [0, 1]})


def test_what_a_resample_cannot_tell_is_left_open():
    found = bootstrap_ratio(np.array([1.0, 0.0, 0.0]), np.array([2.0, 0.0, 0.0]), bounds=(0.0, 3.0))
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 3.0)
    with pytest.raises(FusionError, match="needs bounds"):
        bootstrap_ratio(np.zeros(2), np.array([1.0, 0.0]))

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from arc_halo.errors import MetricError, MetricNotFound, RunNotFound
from arc_halo.training.comparing import align_curves, compare_runs
from arc_halo.training.history import best, latest
from tests.schema.rows import add_attempt, add_model, add_run, digest
from tests.training.recorded import add_forked_run, add_points, statements


@pytest.fixture
def runs(session):
    model = add_model(session, "small")
    configs = ({"lr": 0.1, "opt": {"name": "adam", "beta": 0.9}}, {"lr": 0.2, "opt": {"name": "adam"}, "warmup": 10})
    made = []
    for name, config in zip(("a", "b"), configs, strict=True):
        run = add_run(session, model, name, config=config, seed=7, dataset_digest=digest(name))
        attempt = add_attempt(session, run)
        steps = [0, 1, 2] if name == "a" else [1, 2, 3]
        add_points(session, attempt, steps, [3.0, 1.0, 2.0], goal="minimize")
        made.append(run)
    add_points(session, made[1].attempts[0], [1], [0.5], name="accuracy", scope="validation")
    return made


def test_what_was_set_differently(session, runs):
    comparison = compare_runs(session, runs)
    assert {each.key: dict(each.values) for each in comparison.differences} == {
        "lr": {"small@1/a": 0.1, "small@1/b": 0.2},
        "opt.beta": {"small@1/a": 0.9},
        "warmup": {"small@1/b": 10},
        "[data]": {"small@1/a": digest("a").hex(), "small@1/b": digest("b").hex()},
    }
    assert comparison.equal_count == 2  # the optimizer's name and the seed


@pytest.mark.usefixtures("runs")
def test_what_was_reached(session):
    comparison = compare_runs(session, ["small/a", "small/b"])
    assert comparison.metrics == ["train/loss", "validation/accuracy"]
    assert [(each.run, each.metric) for each in comparison.curves] == [
        ("small@1/a", "train/loss"),
        ("small@1/b", "train/loss"),
    ]
    assert comparison.runs[0].metrics["loss"].best_value == 1


def test_curves_that_are_asked_for(session, runs):
    assert [each.metric for each in compare_runs(session, runs, ["validation/accuracy"]).curves] == [
        "validation/accuracy"
    ]
    with pytest.raises(MetricNotFound):
        compare_runs(session, runs, ["nothing"])
    with pytest.raises(RunNotFound):
        compare_runs(session, ["small/c"])


def test_a_notebook_shows_tables_and_a_picture(session, runs):
    html = compare_runs(session, runs)._repr_html_()
    for part in ("small@1/a", "opt.beta", "validation/accuracy", "data:image/png;base64,"):
        assert part in html


def test_statements_do_not_grow(session, runs):
    with statements(session) as sent:
        compare_runs(session, [runs[0]])
    for_one = len(sent)
    with statements(session) as sent:
        compare_runs(session, runs)
    assert len(sent) == for_one


def test_curves_are_aligned_by_step(session, runs):
    aligned = align_curves(session, runs)
    assert (aligned.metric, aligned.runs) == ("train/loss", ["small@1/a", "small@1/b"])
    assert aligned.steps.tolist() == [0, 1, 2, 3]
    np.testing.assert_equal(aligned.values, [[3, 1, 2, math.nan], [math.nan, 3, 1, 2]])


def test_last_and_best(session, runs):
    assert latest(session, "small/a") == (2, 2.0)
    assert best(session, "small/a") == (1, 1.0)
    assert best(session, "small/a", goal="maximize") == (0, 3.0)
    assert latest(session, add_forked_run(session)) == (19, 119.0)
    with pytest.raises(MetricError, match="what is better of validation/accuracy"):
        best(session, runs[1], "validation/accuracy")
    with pytest.raises(MetricNotFound):
        latest(session, runs[0], "validation/accuracy")


def test_there_is_no_best_of_nothing(session):
    attempt = add_attempt(session, add_run(session, add_model(session, "small"), "nan"))
    add_points(session, attempt, [1], [math.nan], goal="minimize")
    add_points(session, attempt, [], [], name="empty", goal="minimize")
    assert best(session, "small/nan") is None
    assert (best(session, "small/nan", "empty"), latest(session, "small/nan", "empty")) == (None, None)
    np.testing.assert_equal(latest(session, "small/nan"), (1, math.nan))


def test_without_matplotlib_there_are_tables(session, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "<table" in compare_runs(session, runs)._repr_html_()

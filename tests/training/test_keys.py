"""Keys of series, and finding or making the series they name."""

import threading
import uuid

import numpy as np
import pytest
from sqlalchemy import func, select, text

from arc_halo.errors import ConstraintViolation, MetricError
from arc_halo.schema import MetricSeries
from arc_halo.training.points import SeriesKey, series_ids, series_key
from tests.schema.rows import add_attempt, add_model, add_run, add_series


@pytest.fixture
def attempt(session):
    return add_attempt(session, add_run(session, add_model(session)))


def test_equal_contexts_make_equal_keys():
    assert series_key("loss", context={"b": 1.0, "a": [np.int64(2)]}) == series_key("loss", context={"a": [2], "b": 1})
    assert series_key("loss") == SeriesKey("loss", "train", "{}")


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\0", "x" * 501, "\ud800", 5, None])
def test_a_name_that_cannot_be_shown_is_refused(name):
    with pytest.raises(MetricError, match="printable"):
        series_key(name)


@pytest.mark.parametrize("scope", ["", "eval", "TRAIN", None])
def test_a_scope_is_one_of_four(scope):
    with pytest.raises(MetricError, match="validation"):
        series_key("loss", scope)


@pytest.mark.parametrize(
    "context",
    [{"a": float("nan")}, {"a": object()}, {1: 2}, {"a": {2: 3}}, {"a": "\0"}, {"a": "x" * 500}, {"a": "\ud800"}],
)
def test_a_context_is_json(context):
    with pytest.raises(MetricError, match="context"):
        series_key("loss", context=context)


def test_a_context_that_contains_itself_is_refused():
    context = {}
    context["a"] = context
    with pytest.raises(MetricError, match="context"):
        series_key("loss", context=context)


def test_series_are_made_once(session, attempt):
    keys = [series_key("loss"), series_key("loss", "validation"), series_key("loss", context={"rank": 1})]
    made = series_ids(session, attempt.id, keys)
    assert list(made) == keys
    assert len(set(made.values())) == 3
    assert series_ids(session, attempt.id, [*reversed(keys), series_key("new")]).items() >= made.items()
    assert series_ids(session, attempt.id, []) == {}


def test_a_series_made_by_others_is_found_whatever_the_spelling_of_its_context(session, attempt):
    series = add_series(session, attempt, context={"lr": 1.0, "a": 0.10})
    spelled = [series_key("loss", context={"a": 0.1, "lr": 1}), SeriesKey("loss", "train", '{ "lr": 1.00, "a": 0.1 }')]
    assert set(series_ids(session, attempt.id, spelled).values()) == {series.id}
    new = [SeriesKey("new", "train", '{"a": 1}'), SeriesKey("new", "train", '{"a": 1.0}')]
    assert len(set(series_ids(session, attempt.id, new).values())) == 1


def test_goals_are_kept_and_may_come_later(session, attempt):
    key = series_key("loss")
    made = series_ids(session, attempt.id, [key, series_key("accuracy")], {"accuracy": "maximize"})
    series_ids(session, attempt.id, [key], {"loss": "minimize", "other": "maximize"})
    series_ids(session, attempt.id, [key])
    goals = dict(session.execute(select(MetricSeries.id, MetricSeries.goal)).all())
    assert goals == {made[key]: "minimize", made[series_key("accuracy")]: "maximize"}


def test_a_goal_is_one_of_two(session, attempt):
    with pytest.raises(MetricError, match="maximize"):
        series_ids(session, attempt.id, [series_key("loss")], {"loss": "less"})


def test_an_attempt_that_is_not_there_has_no_series(session):
    with pytest.raises(ConstraintViolation) as caught:
        series_ids(session, uuid.uuid4(), [series_key("loss")])
    assert caught.value.is_dangling


def test_many_who_make_the_same_series_get_the_same_ids(database):
    with database.session() as session, session.begin():
        attempt = add_attempt(session, add_run(session, add_model(session)))
    keys = [series_key(f"m{number}", context={"n": number}) for number in range(40)]
    found, begin = [], threading.Barrier(8)

    def make(seed):
        shuffled = np.random.default_rng(seed).permutation(len(keys))
        with database.session() as session, session.begin():
            begin.wait()
            found.append(series_ids(session, attempt.id, [keys[place] for place in shuffled], {"m1": "minimize"}))

    threads = [threading.Thread(target=make, args=[seed]) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(each == found[0] for each in found)
    with database.session() as session:
        assert session.scalar(select(func.count()).select_from(MetricSeries)) == 40
        assert session.scalar(text("SELECT goal FROM arc_halo.metric_series WHERE name = 'm1'")) == "minimize"

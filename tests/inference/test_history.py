"""Sessions read back: summed up, found by what they are called, and old figures dropped."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest

from arc_halo.errors import ConfigurationError, ModelNotFound, SessionNotFound
from arc_halo.inference.history import (
    count_old_metrics,
    describe_sessions,
    drop_old_metrics,
    find_session,
    latency_curve,
    list_sessions,
)
from arc_halo.registry.naming import set_alias
from arc_halo.schema import InferenceMetric, InferenceSession
from tests.inference.used import ENSURE, PARTITIONS
from tests.schema.rows import add, add_model

YEAR = dt.timedelta(days=365)


def add_session(session, model, name=None, latencies=(), **columns):
    row = add(session, InferenceSession(model=model, name=name, **columns))
    now = dt.datetime.now(dt.UTC)
    for number, latency in enumerate(latencies):
        place = {"inference_session_id": row.id, "request_number": number, "recorded_at": now}
        tokens = {"prompt_token_count": 5, "cached_token_count": 2 if number % 2 else None}
        session.add(InferenceMetric(**place, latency_seconds=latency, tokens_per_second=2 * latency, **tokens))
    session.flush()
    return row


def test_sessions_are_summed_up(session):
    model = add_model(session)
    latencies = np.random.default_rng(1).exponential(size=101)
    columns = {"request_count": 200, "prompt_token_count": 10, "cached_token_count": 4}
    row = add_session(session, model, "chat", latencies.tolist(), **columns)
    silent = add_session(session, model)
    last, first = list_sessions(session)
    assert (first.id, last.id) == (row.id, silent.id)
    assert (first.model, first.name, first.status, first.request_count) == ("model@1", "chat", "active", 200)
    assert (first.measured_count, first.cached_share) == (101, 0.4)
    expected = np.percentile(latencies, [50, 99])
    assert (first.latency_p50_seconds, first.latency_p99_seconds) == pytest.approx(tuple(expected))
    assert first.tokens_per_second_p50 == pytest.approx(2 * expected[0])
    assert first.time_to_first_token_p50_seconds is None
    assert (last.measured_count, last.latency_p50_seconds, last.cached_share) == (0, None, None)


def test_sessions_of_a_model(session):
    models = [add_model(session, name) for name in "ab"]
    rows = [add_session(session, model) for model in (*models, models[0])]
    assert [each.id for each in list_sessions(session, model="a")] == [rows[2].id, rows[0].id]
    assert [each.id for each in list_sessions(session, limit=1)] == [rows[2].id]
    assert describe_sessions(session, []) == []
    with pytest.raises(ModelNotFound):
        list_sessions(session, model="c")


def test_a_session_is_found_by_what_it_is_called(session):
    one = add_model(session, "lab/m")
    two = add_model(session, "lab/m", version="2")
    old, new = add_session(session, one, "chat"), add_session(session, two, "chat")
    set_alias(session, one, "good")
    found = {"lab/m/chat": new, "lab/m@1/chat": old, "lab/m@good/chat": old, str(old.id): old, old.id: old}
    assert {reference: find_session(session, reference) for reference in found} == found
    assert find_session(session, str(new.id).upper()[:36]) == new


@pytest.mark.parametrize("reference", ["m/chat", "chat", "abc", "ffffffff", "%", "m@9/chat", "a\0b", "0" * 200])
def test_a_session_that_is_not_there_is_said(session, reference):
    with pytest.raises(SessionNotFound, match="arc-halo infer sessions"):
        find_session(session, reference)


def test_an_id_that_several_begin_with_is_refused(session):
    model = add_model(session)
    first, _ = add_session(session, model), add_session(session, model)
    with pytest.raises(SessionNotFound, match="several ids"):
        find_session(session, str(first.id)[:6])


def test_the_curve_has_a_median_per_bucket(session):
    row = add_session(session, add_model(session), latencies=[float(number) for number in range(10)])
    assert latency_curve(session, row.id, buckets=2).tolist() == [2.0, 7.0]
    assert latency_curve(session, row.id, buckets=100).tolist() == list(range(10))
    assert len(latency_curve(session, add_session(session, row.model).id, buckets=4)) == 0


def test_old_months_are_dropped_whole(session):
    now = dt.datetime.now(dt.UTC)
    row = add_session(session, add_model(session), latencies=[1.0])
    times = [now - 2 * YEAR, now - YEAR - dt.timedelta(days=32), (now - YEAR).replace(day=1)]
    for number, time in enumerate(times, 1):
        session.execute(ENSURE, {"start": time})
        place = {"inference_session_id": row.id, "request_number": number, "recorded_at": time}
        add(session, InferenceMetric(**place, latency_seconds=1.0))
    partitions = session.scalars(PARTITIONS).all()
    count, end = count_old_metrics(session, YEAR)
    assert (count, end) == (2, (now - YEAR).replace(day=1, hour=0, minute=0, second=0, microsecond=0))
    assert drop_old_metrics(session, YEAR) == 2
    assert session.scalars(PARTITIONS).all() == partitions[2:]
    assert count_old_metrics(session, YEAR)[0] == drop_old_metrics(session, YEAR) == 0


@pytest.mark.parametrize("keep", [dt.timedelta(-1), dt.timedelta.max, 90, None])
def test_a_time_to_keep_that_is_none_is_refused(session, keep):
    for what in (count_old_metrics, drop_old_metrics):
        with pytest.raises(ConfigurationError, match="keep is"):
            what(session, keep)

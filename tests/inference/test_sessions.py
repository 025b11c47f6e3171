"""Sessions: what is recorded of requests, how they end, and what they outlive."""

from __future__ import annotations

import datetime as dt
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sqlalchemy import delete, select, text

from arc_halo.errors import (
    ConfigurationError,
    InvalidName,
    MetricError,
    MetricsLost,
    ModelNotFound,
)
from arc_halo.inference import recording
from arc_halo.inference.figures import peak_memory_nbytes
from arc_halo.inference.sessions import inference_session
from arc_halo.schema import InferenceSession, Model
from tests.inference.used import metrics_of, partitions, session_of, store_model
from tests.schema.rows import digest


@pytest.fixture
def begin(database):
    """Begin a session with a model that is there."""
    store_model(database)
    return lambda db=database, **options: inference_session(db, "m", **options)


def test_a_session_is_active_and_then_completed(begin, database):
    config = {"temperature": np.float32(0.5), "stop": ["a"], "bias": np.arange(2)}
    with begin(name="chat", config=config) as inference:
        row = session_of(database)
        assert (row.id, row.status, row.ended_at) == (inference.id, "active", None)
        assert (row.weights_digest, inference.weights_digest) == (digest("weights"), digest("weights"))
        assert (row.name, row.config) == ("chat", {"temperature": 0.5, "stop": ["a"], "bias": [0, 1]})
    row = session_of(database)
    assert row.status == "completed"
    assert row.created_at <= row.ended_at


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no"), "failed"),
        (SystemExit(1), "failed"),
        (SystemExit(0), "completed"),
        (SystemExit(), "completed"),
        (KeyboardInterrupt(), "completed"),
    ],
    ids=repr,
)
def test_how_a_block_is_left_is_how_the_session_ended(begin, database, error, status):
    with pytest.raises(type(error)), begin() as inference:  # noqa: PT012
        inference.record(0.5)
        raise error
    row = session_of(database)
    assert (row.status, row.request_count) == (status, 1)
    assert row.ended_at is not None


def test_a_request_is_measured(begin, database):
    with begin() as inference, inference.request(prompt_token_count=10, cached_token_count=4) as request:
        time.sleep(0.02)
        request.first_token()
        time.sleep(0.03)
        request.first_token()
        request.finish(np.int64(4))
    (row,) = metrics_of(database)
    assert (row.request_number, row.prompt_token_count, row.generated_token_count, row.cached_token_count) == (
        0,
        10,
        4,
        4,
    )
    assert 0.02 <= row.time_to_first_token_seconds < row.latency_seconds - 0.03 + 1e-6
    assert row.tokens_per_second == pytest.approx(3 / (row.latency_seconds - row.time_to_first_token_seconds))
    assert 10**7 < row.memory_nbytes <= peak_memory_nbytes()
    assert abs(dt.datetime.now(dt.UTC) - row.recorded_at) < dt.timedelta(minutes=1)


def test_what_is_not_known_is_null(begin, database):
    with begin() as inference:
        with inference.request() as request:
            request.finish(memory_nbytes=7)
        with inference.request():
            pass  # finished by the end of its block
        with inference.request(5) as request:
            request.first_token()
            request.finish(1)
    first, second, third = metrics_of(database)
    assert (first.time_to_first_token_seconds, first.tokens_per_second, first.prompt_token_count) == (None, None, None)
    assert (first.generated_token_count, first.memory_nbytes) == (None, 7)
    assert second.latency_seconds >= 0
    assert (third.generated_token_count, third.tokens_per_second) == (1, None)


def test_a_request_that_raises_is_not_recorded(begin, database):
    with begin() as inference:
        with pytest.raises(ValueError, match="model"), inference.request():
            raise ValueError("model")
        with inference.request() as request:
            request.finish(1)
    assert [row.request_number for row in metrics_of(database)] == [1]


def test_counts_stand_in_the_session(begin, database):
    with begin() as inference:
        for number in range(2500):
            inference.record(
                0.1, prompt_token_count=10, generated_token_count=number % 3, cached_token_count=number % 2
            )
    row = session_of(database)
    counts = (row.request_count, row.prompt_token_count, row.generated_token_count, row.cached_token_count)
    assert counts == (2500, 25_000, sum(number % 3 for number in range(2500)), 1250)
    assert [row.request_number for row in metrics_of(database)] == list(range(2500))


def test_figures_of_elsewhere_are_taken_as_they_are(begin, database):
    when = dt.datetime.now(dt.UTC).replace(microsecond=5)
    with begin() as inference:
        number = inference.record(
            3.0, time_to_first_token_seconds=1.0, generated_token_count=5, memory_nbytes=2**40, recorded_at=when
        )
        assert inference.record(3.0, tokens_per_second=7.0) == number + 1
    first, second = metrics_of(database)
    assert (first.latency_seconds, first.tokens_per_second, first.memory_nbytes) == (3.0, 2.0, 2**40)
    assert first.recorded_at == when
    assert (second.tokens_per_second, second.memory_nbytes) == (7.0, None)


@pytest.mark.parametrize(
    "figures",
    [
        {"latency_seconds": float("nan")},
        {"latency_seconds": -1},
        {"latency_seconds": "fast"},
        {"latency_seconds": 1, "time_to_first_token_seconds": 2},
        {"latency_seconds": 1, "generated_token_count": -1},
        {"latency_seconds": 1, "generated_token_count": 1.5},
        {"latency_seconds": 1, "prompt_token_count": 2**31},
        {"latency_seconds": 1, "prompt_token_count": 1, "cached_token_count": 2},
        {"latency_seconds": 1, "memory_nbytes": 2**63},
        {"latency_seconds": 1, "recorded_at": dt.datetime(2026, 11, 1)},  # noqa: DTZ001  that is what is wrong
    ],
    ids=str,
)
def test_figures_that_are_none_are_refused_where_they_are_given(begin, database, figures):
    with begin() as inference:
        with pytest.raises(MetricError):
            inference.record(**figures)
        inference.record(1.0)
    assert [row.request_number for row in metrics_of(database)] == [0]


def test_a_request_is_finished_once(begin, database):
    with begin() as inference, inference.request() as request:
        with pytest.raises(MetricError):
            request.finish(-1)
        request.finish(1)
        with pytest.raises(MetricError, match="finished already"):
            request.finish(1)
    assert len(metrics_of(database)) == 1


def test_nothing_is_taken_after_the_end(begin):
    with begin() as inference:
        pass
    with pytest.raises(MetricError, match="has ended"), inference.request():
        pass
    with pytest.raises(MetricError, match="has ended"):
        inference.record(1.0)


def test_flush_shows_others_what_was_recorded(begin, database):
    with begin() as inference:
        inference.record(1.0)
        inference.flush()
        assert session_of(database).request_count == len(metrics_of(database)) == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": "a@b"}, InvalidName),
        ({"config": {"t": float("nan")}}, ConfigurationError),
        ({"config": {"t": object()}}, ConfigurationError),
        ({"config": {"t": "\0"}}, ConfigurationError),
    ],
)
def test_what_cannot_be_stored_is_refused_at_the_beginning(begin, database, options, error):
    with pytest.raises(error), begin(**options):
        pass
    with database.session() as session:
        assert session.scalars(select(InferenceSession)).all() == []


@pytest.mark.usefixtures("begin")
def test_the_model_must_be_there_and_is_read_as_it_is(database):
    with pytest.raises(ModelNotFound), inference_session(database, "other"):
        pass
    with database.session() as session:
        model = session.scalars(select(Model)).one()
    database.transaction(lambda session: session.execute(text("UPDATE arc_halo.models SET weights_digest = NULL")))
    with inference_session(database, model) as inference:
        assert inference.weights_digest is None


def test_numbers_of_threads_are_their_own(begin, database):
    def serve(_):
        for _ in range(200):
            with inference.request(3, 1) as request:
                request.finish(2)

    with begin() as inference, ThreadPoolExecutor(8) as pool:
        list(pool.map(serve, range(8)))
    assert [row.request_number for row in metrics_of(database)] == list(range(1600))
    row = session_of(database)
    assert (row.request_count, row.prompt_token_count, row.cached_token_count) == (1600, 4800, 1600)


def test_a_month_without_a_partition_gets_one(begin, database):
    old, older = (
        dt.datetime(2025, 3, 31, 23, 30, tzinfo=dt.timezone(-dt.timedelta(hours=5))),
        dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
    )
    with begin() as inference:
        for recorded_at in (old, None, older):
            inference.record(1.0, recorded_at=recorded_at)
    first, _, third = metrics_of(database)
    assert (first.recorded_at, third.recorded_at) == (old, older)
    assert partitions(database)[:2] == ["inference_metrics_2024_01", "inference_metrics_2025_04"]
    assert session_of(database).request_count == 3


def test_stored_twice_it_is_counted_once(begin, database):
    with begin() as inference:
        inference.record(1.0, prompt_token_count=3)
        rows = list(inference._recorder._rows)
        inference.flush()
        inference._recorder._store(rows)
    assert (session_of(database).request_count, session_of(database).prompt_token_count) == (1, 3)


def test_a_session_that_was_deleted_is_said_at_its_end(begin, database, caplog):
    caplog.set_level(logging.ERROR)
    with pytest.raises(MetricsLost, match=r"2 requests .* was deleted"), begin() as inference:  # noqa: PT012
        database.transaction(lambda session: session.execute(delete(InferenceSession)))
        inference.record(1.0)
        with pytest.raises(MetricsLost):
            inference.flush()
        inference.record(1.0)
    assert "was deleted" in caplog.text


def test_a_process_that_was_forked_is_refused(begin, database, monkeypatch):
    with begin() as inference:
        monkeypatch.setattr(recording.os, "getpid", lambda: -1)
        with pytest.raises(MetricError, match="forked"):
            inference.record(1.0)
        inference._recorder.close("failed", 5)
        monkeypatch.undo()
        inference.record(1.0)
    assert session_of(database).status == "completed"
    assert os.getpid() == inference._recorder._process

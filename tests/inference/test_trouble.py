"""A database that is away, for a while or for good: the loop that serves never waits, and the end says what is lost."""

from __future__ import annotations

import logging
import time

import pytest

from arc_halo import connect
from arc_halo.errors import DatabaseUnavailable, MetricsLost
from arc_halo.inference import recording
from arc_halo.inference.sessions import inference_session
from tests.fixtures.proxy import Proxy
from tests.inference.used import metrics_of, session_of, store_model


@pytest.fixture
def behind(database, migrated_url, monkeypatch):
    """A link to the database that can be cut, and the database through it."""
    monkeypatch.setattr(recording, "FLUSH_SECONDS", 0.1)
    monkeypatch.setattr("arc_halo.database.unanswered.ABANDONED_SECONDS", 0.2)
    store_model(database)
    link = Proxy(migrated_url)
    with connect(link.url) as through:
        yield link, through
    link.close()


def test_a_database_that_is_away_and_back_has_everything(behind, database, caplog):
    link, through = behind
    with inference_session(through, "m") as inference:
        inference.record(1.0)
        inference.flush()
        link.freeze()
        link.cut()
        began = time.monotonic()
        for _ in range(5000):
            inference.record(1.0, generated_token_count=2)
        assert time.monotonic() - began < 2
        with pytest.raises(DatabaseUnavailable, match="5000 requests"):
            inference.flush(0.5)
        link.thaw()
    row = session_of(database)
    assert (row.status, row.request_count, row.generated_token_count) == ("completed", 5001, 10_000)
    assert len(metrics_of(database)) == 5001
    assert len([each for each in caplog.records if each.levelno >= logging.WARNING]) <= 2


@pytest.mark.parametrize("moment", ["cut_before", "cut_after"])
def test_a_link_cut_around_commit_stores_once(behind, database, moment):
    link, through = behind
    with inference_session(through, "m") as inference:
        inference.record(1.0)
        inference.flush()
        setattr(link, moment, b"COMMIT")
        inference.record(1.0, prompt_token_count=4)
    assert getattr(link, moment) is None
    row = session_of(database)
    assert (row.status, row.request_count, row.prompt_token_count) == ("completed", 2, 4)


def test_a_database_that_stays_away_is_said_at_the_end(behind, database):
    link, through = behind
    lost = pytest.raises(MetricsLost, match=r"3 requests .* still active")
    with lost, inference_session(through, "m", close_timeout=0.5) as inference:
        link.stop()
        link.cut()
        for _ in range(3):
            inference.record(1.0)
    assert session_of(database).status == "active"


def test_an_error_of_the_block_is_not_hidden_by_trouble_at_the_end(behind):
    link, through = behind
    error = ValueError("model")
    with pytest.raises(ValueError, match="model"), inference_session(through, "m", close_timeout=0.5) as inference:  # noqa: PT012
        link.stop()
        link.cut()
        inference.record(1.0)
        raise error
    assert "1 requests" in error.__notes__[0]


def test_memory_is_bounded_and_what_did_not_fit_is_said(behind, database, monkeypatch, caplog):
    link, through = behind
    monkeypatch.setattr(recording.MetricRecorder.__init__, "__kwdefaults__", {"capacity": 10})
    lost = pytest.raises(MetricsLost, match=r"7 requests .* memory for them was full")
    with lost, inference_session(through, "m") as inference:
        link.freeze()
        link.cut()
        for _ in range(17):
            inference.record(1.0)
        link.thaw()
    assert "dropped" in caplog.text
    assert (session_of(database).status, session_of(database).request_count) == ("completed", 10)


def test_an_error_nobody_thought_of_is_outlived(behind, database, monkeypatch):
    _, through = behind
    work, failures = recording.MetricRecorder._work, iter([RuntimeError("no luck")])

    def fail_once(self):
        if (error := next(failures, None)) is not None:
            raise error
        work(self)

    monkeypatch.setattr(recording.MetricRecorder, "_work", fail_once)
    with inference_session(through, "m") as inference:
        inference.record(1.0)
    assert (session_of(database).status, session_of(database).request_count) == ("completed", 1)

# ruff: noqa: PT012  (what raises is the end of a run, whatever went on in it)

from __future__ import annotations

import os
import threading
import time

import psycopg
import pytest
from sqlalchemy import delete, func, update

from arc_halo.database import connect
from arc_halo.database.url import libpq_string
from arc_halo.errors import AttemptLost, DatabaseUnavailable, FileNotWritten, MetricError
from arc_halo.schema import TrainingAttempt, TrainingSession
from arc_halo.training import kept as run_module
from arc_halo.training import recorder as recorder_module
from arc_halo.training.spool import segment_files
from tests.training.trained import attempts, run_of, state, stored


@pytest.fixture
def database_url(migrated_url):
    return migrated_url


@pytest.fixture
def away(database_server, migrated_url):
    """Takes the database away, and gives it back; what was connected is cut."""
    name = migrated_url.database

    def switch(is_away):
        with psycopg.connect(libpq_string(database_server.url), autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {not is_away}')
            if is_away:
                connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

    yield switch
    switch(False)


@pytest.fixture(autouse=True)
def impatience(monkeypatch):
    monkeypatch.setenv("ARC_HALO_CONNECT_ATTEMPTS", "1")
    monkeypatch.setenv("ARC_HALO_CONNECT_TIMEOUT_SECONDS", "2")
    monkeypatch.setattr(recorder_module, "_PAUSES", (0.05, 0.2))
    monkeypatch.setattr(recorder_module, "FLUSH_SECONDS", 0.05)
    monkeypatch.setattr(run_module, "END_SECONDS", 1.0)


def log(run, *steps, value=1.0):
    for step in steps:
        run.log({"loss": value}, step)


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def spooled(run):
    return segment_files(run._recorder._spool.folder)


def test_while_the_database_is_away_points_wait_on_disk(begin, database, away):
    with begin() as run:
        log(run, 0, 1)
        run.flush()
        away(True)
        log(run, 2, 3)
        wait_until(lambda: spooled(run))
        log(run, 1, value=7.0)  # once more, and later
        with pytest.raises(DatabaseUnavailable):
            run.flush()
        away(False)
        log(run, 3, value=8.0)
        run.flush(timeout=30)
        assert stored(database) == [(1, 0, 1.0), (1, 1, 7.0), (1, 2, 1.0), (1, 3, 8.0)]
        assert spooled(run) == []


def test_a_checkpoint_takes_what_waits_on_disk_with_it(begin, database, away, monkeypatch):
    with begin() as run:
        away(True)
        log(run, *range(5))
        wait_until(lambda: spooled(run))
        monkeypatch.setattr(run._recorder, "_next_try", time.monotonic() + 1e6)  # the thread would be as quick
        away(False)
        log(run, 5)
        saved = run.save_checkpoint(state(), 5)
        assert [step for _, step, _ in stored(database)] == list(range(6))
        assert (saved.metrics, spooled(run)) == ({"loss": 1.0}, [])


def test_a_save_that_fails_says_so_and_points_stay(begin, database, away):
    with begin() as run:
        log(run, 0)
        away(True)
        log(run, 1)
        with pytest.raises(DatabaseUnavailable):
            run.save_checkpoint(state(), 1)
        future = run.save_checkpoint(state(), 1, wait=False)
        with pytest.raises(DatabaseUnavailable) as told:
            run.flush()
        assert told.value.__notes__ == ["the checkpoint of step 1 that was saved in the background failed of this"]
        assert isinstance(future.exception(), DatabaseUnavailable)
        away(False)
        run.save_checkpoint(state(), 1)
        assert [step for _, step, _ in stored(database)] == [0, 1]


def test_a_database_that_does_not_answer_holds_nobody_up(begin, database, proxy, monkeypatch):
    monkeypatch.setattr("arc_halo.training.buffer.SPILL_SECONDS", 0.2)
    with connect(proxy.url) as behind, begin(behind) as run:
        log(run, 0)
        run.flush()
        proxy.freeze()
        for step in range(1, 40):
            log(run, step)
            time.sleep(0.02)
        with pytest.raises(DatabaseUnavailable, match="points yet"):
            run.flush(timeout=0.2)
        wait_until(lambda: spooled(run))  # though the thread that writes hangs
        proxy.thaw()
        run.flush(timeout=60)
        assert [step for _, step, _ in stored(database)] == list(range(40))


def test_more_points_than_there_is_room_for_go_to_disk(begin, database):
    with begin() as run:
        run._recorder.buffer._capacity = 10
        run._recorder._writing.acquire()
        log(run, *range(100))
        assert len(run._recorder.buffer._data) == 36 * (1 << 16)
        assert run._recorder.buffer._count <= 10
        run._recorder._writing.release()
        run.flush()
        assert [step for _, step, _ in stored(database)] == list(range(100))


def take_over(database, status="lost"):
    def unit(session):
        ended = {"status": status, "ended_at": func.now(), "error": "its process was gone; attempt 2 took over"}
        session.execute(update(TrainingAttempt).values(ended))

    database.transaction(unit)


def test_who_was_taken_over_learns_it_and_writes_nothing(begin, database):
    with pytest.raises(AttemptLost, match="taken over"), begin() as run:
        log(run, 0)
        run.flush()
        take_over(database)
        log(run, 1)
        with pytest.raises(AttemptLost, match="stop this process"):
            run.flush()
        with pytest.raises(AttemptLost):
            log(run, 2)
        with pytest.raises(AttemptLost):
            run.save_checkpoint(state(), 2)
    assert stored(database) == [(1, 0, 1.0)]
    assert [each.status for each in attempts(database)] == ["lost"]


def test_a_lost_attempt_publishes_nothing_even_before_it_knows(begin, database, monkeypatch):
    monkeypatch.setattr(recorder_module, "FLUSH_SECONDS", 60.0)
    with pytest.raises(AttemptLost), begin() as run:
        take_over(database)
        log(run, 1)
        run.save_checkpoint(state(), 1)
    assert stored(database) == []
    assert not list(run._recorder._spool.folder.parent.glob("*"))


def test_a_run_that_was_deleted_says_so(begin, database):
    with pytest.raises(AttemptLost, match="was deleted"), begin() as run:
        log(run, 0)
        run.flush()
        database.transaction(lambda session: session.execute(delete(TrainingSession)))
        log(run, 1)
        run.flush()


def test_a_run_that_ends_while_the_database_is_away_is_ended_by_the_next(begin, database, away):
    with pytest.raises(DatabaseUnavailable), begin() as run:
        log(run, 0)
        run.flush()
        away(True)
        log(run, 1, 2)
    away(False)
    assert [each.status for each in attempts(database)] == ["running"]
    with begin(name="other"):
        first = attempts(database)[0]
        assert (first.status, first.ended_at is None) == ("completed", False)
        assert [step for _, step, _ in stored(database)] == [0, 1, 2]


def test_an_error_is_not_hidden_by_a_database_that_is_away(begin, database, away):
    with pytest.raises(ZeroDivisionError) as raised, begin():
        away(True)
        raise ZeroDivisionError
    assert "could not be ended" in raised.value.__notes__[0]
    away(False)
    with begin():
        assert attempts(database)[0].status == "failed"


def test_without_disk_and_database_points_are_lost_and_it_is_said(begin, database, away, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with begin(spool_folder=tmp_path / "file") as run:
        run._recorder.buffer._capacity = 4
        away(True)
        log(run, 0)
        wait_until(lambda: run._recorder._failures)
        log(run, *range(1, 10))
        away(False)
        with pytest.raises(FileNotWritten, match="8 points are lost"):
            run.flush(timeout=30)
        run.flush()
        assert [step for _, step, _ in stored(database)] == [0, 9]


def test_a_forked_child_neither_records_nor_ends_the_run(begin, database):
    with begin() as run:
        log(run, 0)
        child = os.fork()
        if not child:
            status = 1
            try:
                log(run, 1)
            except MetricError as error:
                status = 0 if "forked" in str(error) else 2
            run.stop()
            os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        log(run, 2)
        run.flush()
        assert [each.status for each in attempts(database)] == ["running"]
    assert [step for _, step, _ in stored(database)] == [0, 2]


def test_silence_is_no_death(begin, database):
    with begin(stale_after=0.4):
        first = attempts(database)[0].heartbeat_at
        wait_until(lambda: attempts(database)[0].heartbeat_at > first)


def test_it_lives_while_a_checkpoint_holds_its_points(begin, database):
    with begin(stale_after=0.4) as run, run._recorder.draining() as drain, database.session() as session:
        drain(session)
        session.rollback()
        first = attempts(database)[0].heartbeat_at
        wait_until(lambda: attempts(database)[0].heartbeat_at > first)


def test_where_training_is_can_be_seen(begin, database):
    with begin() as run:
        run.log({"loss": 1.0}, 7, epoch=0.5)
        run.flush()
        row = run_of(database)
        assert (row.status, row.current_step, row.current_epoch) == ("running", 7, 0.5)


def test_threads_may_log_at_once(begin, database):
    with begin() as run:
        threads = [threading.Thread(target=log, args=(run, *range(n, 4000, 4))) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [step for _, step, _ in stored(database)] == list(range(4000))

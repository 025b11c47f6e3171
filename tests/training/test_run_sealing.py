"""Runs seal their points by themselves: old ones as they go, all when they end; the history is the same."""

import logging
import threading
import time

import pytest
from sqlalchemy import func, select, text

from arc_halo.schema import MetricSegment, TrainingMetric
from arc_halo.training import sealing
from arc_halo.training.history import history
from tests.training.trained import run_of, state, stored


@pytest.fixture
def database_url(migrated_url):
    return migrated_url


def counts(database):
    """Segments, sealed points and single ones."""
    with database.session() as session:
        segments, sealed = session.execute(select(func.count(), func.sum(MetricSegment.point_count))).one()
        return segments, int(sealed or 0), session.scalar(select(func.count()).select_from(TrainingMetric))


def log(run, steps):
    for step in steps:
        run.log({"loss": float(step)}, step)


def test_a_run_that_ended_is_sealed(begin, database):
    with begin() as run:
        log(run, range(5000))
        run.log({"accuracy": 0.5}, 0, scope="validation")
    assert counts(database) == (2, 5000, 1)  # one point is left as it is
    assert stored(database) == [(1, step, float(step)) for step in range(5000)]


@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_however_it_ended(begin, database, status):
    with begin() as run:
        log(run, range(100))
        run.stop(status)
    assert counts(database) == (1, 100, 0)


def test_old_points_are_sealed_while_it_runs(begin, database, monkeypatch):
    monkeypatch.setattr(sealing, "SEAL_EVERY", 1000)
    with begin() as run:
        log(run, range(20_000))
        run.flush()
        log(run, range(20_000, 20_001))
        wait_until(lambda: counts(database)[0])
        segments, sealed, single = counts(database)
        assert single >= sealing.SEGMENT_POINTS
        assert segments * sealing.SEGMENT_POINTS >= sealed > 0
        log(run, range(10, 20))  # again, and nothing is lost
        run.flush()
        with database.session() as session:
            assert history(session, "m/r", "loss")["step"].tolist() == list(range(20_001))


def test_what_goes_on_after_a_run_was_sealed_is_its_own(begin, database):
    with begin() as run:
        log(run, range(60))
        run.save_checkpoint(state(), 59)
        log(run, range(60, 100))
        run.stop("failed")
    with begin() as run:
        assert run.first_step == 60
        log(run, range(60, 120))
    assert counts(database) == (1, 100, 60)
    with database.session() as session:
        assert history(session, "m/r", "loss")["step"].tolist() == list(range(120))


def test_points_that_cannot_be_sealed_stay_and_the_run_has_ended_well(begin, database, caplog, monkeypatch):
    monkeypatch.setattr(sealing, "LOCK_SECONDS", 0.2)
    with database.session() as holder, begin() as run:
        log(run, range(100))
        run.flush()
        holder.execute(text("SELECT FROM arc_halo.metric_series FOR NO KEY UPDATE"))
        with caplog.at_level(logging.WARNING):
            run.stop("completed")
    assert counts(database) == (0, 0, 100)
    assert "seal_points" in caplog.text
    assert run_of(database).status == "completed"


def test_heartbeats_go_on_while_somebody_holds_a_series(begin, database, monkeypatch):
    monkeypatch.setattr(sealing, "SEAL_EVERY", 500)
    monkeypatch.setattr(sealing, "SEGMENT_POINTS", 64)
    silence = text("SELECT extract(epoch FROM clock_timestamp() - heartbeat_at) FROM arc_halo.training_attempts")
    with begin(stale_after=2.0) as run:
        log(run, range(10))
        run.flush()
        with database.session() as holder:
            holder.execute(text("SELECT FROM arc_halo.metric_series FOR KEY SHARE"))
            for number in range(40):
                log(run, range(10 + 200 * number, 210 + 200 * number))
                time.sleep(0.1)
                with database.session() as session:
                    assert session.scalar(silence) < 2
            assert counts(database)[0] == 0
        log(run, range(8010, 9000))
        run.flush()
        wait_until(lambda: counts(database)[0])


def test_what_a_killed_process_left_is_sealed_by_the_next(begin, database):
    """Also what a rank recorded after the first one had ended."""
    with begin(world_size=2) as run, begin(rank=1, world_size=2, attempt_id=run.attempt_id) as second:
        log(run, range(100))
        run.stop("completed")
        log(second, range(50))
        second.flush()
        assert counts(database) == (1, 100, 50)
    assert counts(database) == (1, 100, 50)  # of few points
    with begin() as killed:
        log(killed, range(100))
        killed.flush()
        killed._sealer.seal_ended = lambda _seconds: None  # as if it had no time to
    assert counts(database)[1:] == (100, 150)
    with begin() as run:
        log(run, range(70))
    assert counts(database)[1:] == (270, 50)


def test_ranks_and_a_sealer_do_not_hold_each_other_up(begin, database, monkeypatch):
    monkeypatch.setattr(sealing, "SEAL_EVERY", 300)
    monkeypatch.setattr(sealing, "SEGMENT_POINTS", 64)
    count = 3000
    with begin(world_size=2) as run:

        def second():
            with begin(rank=1, world_size=2, attempt_id=run.attempt_id) as rank:
                for step in range(count):
                    rank.log({"loss": 1.0}, step, context={"rank": 1})
                    time.sleep(0.001)

        thread = threading.Thread(target=second)
        thread.start()
        for step in range(count):
            run.log({"loss": 1.0}, step)
            time.sleep(0.001)
        thread.join()
        run.flush()
        wait_until(lambda: counts(database)[0])
    assert len(stored(database)) == 2 * count


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)

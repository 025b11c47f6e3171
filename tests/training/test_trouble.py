"""Trouble that a run outlives: what it refuses, loses or meets does not stop its heartbeat, its end or its points."""

from __future__ import annotations

import resource
import time
import uuid

import numpy as np
import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError

from arc_halo.errors import AttemptLost, CheckpointError, CheckpointNotFound, FileNotWritten, MetricError, RunInUse
from arc_halo.schema import ModelCheckpoint, TrainingRank
from arc_halo.training import begin_checkpoint, delete_checkpoint, delete_run, history, load_checkpoint, seal_points
from arc_halo.training.points import POINT
from arc_halo.training.processes import this_process
from arc_halo.training.spool import Spool, SpoolHeader, read_segment
from tests.training.trained import attempts, run_of, state, stored

WIDE = "\U00020000"


def test_a_rank_that_ends_after_rank_0_keeps_its_points(begin, database):
    first = begin(world_size=2)
    run = first.__enter__()
    second = begin(rank=1, world_size=2, attempt_id=run.attempt_id)
    other = second.__enter__()
    run.log({"loss": 1.0}, 0)
    first.__exit__(None, None, None)
    other.log({"loss": 2.0}, 0)
    second.__exit__(None, None, None)
    assert sorted(stored(database)) == [(1, 0, 1.0), (1, 0, 2.0)]
    with database.session() as session:
        assert set(session.scalars(select(TrainingRank.status))) == {"completed"}


def heartbeat_age(database):
    with database.session() as session:
        age = text("SELECT extract(epoch FROM clock_timestamp() - heartbeat_at) FROM arc_halo.training_attempts")
        return float(session.scalar(age))


def test_a_lock_on_the_series_does_not_silence_the_run(begin, database):
    with begin(stale_after=4.0) as run:
        run.log({"loss": 1.0}, 0)
        run.flush()
        with database.session() as held:
            seal_points(held, run.training_session_id)  # and nobody commits
            run.log({"loss": 2.0}, 1)
            time.sleep(5)
            assert heartbeat_age(database) < 3
            with pytest.raises(RunInUse), begin(stale_after=4.0):
                pass
            held.rollback()
    assert [step for _, step, _ in stored(database)] == [0, 1]


@pytest.mark.parametrize(
    ("name", "context"),
    [(WIDE * 251, None), ("loss", {"k": WIDE * 200}), ("loss", "rank 0"), ("loss", [1]), ("loss", {("a",): 1})],
    ids=["long name", "long context", "text", "list", "tuple for a key"],
)
def test_what_no_index_holds_is_refused_where_it_is_logged(begin, database, name, context):
    with begin() as run:
        with pytest.raises(MetricError):
            run.log({name: 1.0}, 0, context=context)
        run.log({"loss": 2.0}, 1)
    assert stored(database) == [(1, 1, 2.0)]


def test_the_longest_names_and_contexts_are_stored(begin, database):
    with begin() as run:
        wide = "".join(chr(0x20000 + number) for number in range(250))
        run.log({wide: 1.0}, 0, context={f"k{number:03}": number for number in range(40)})
        run.log({"loss": 1.0}, 0, context={"k": "".join(chr(0x4E00 + number) for number in range(190))})
    assert run_of(database).status == "completed"


def test_a_number_is_used_again_once_the_disk_has_room(tmp_path):
    spool = Spool(tmp_path / "spool", SpoolHeader(uuid.uuid4(), "owner", this_process(), {}))
    points = np.zeros(1000, POINT)
    number = spool.reserve()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(FileNotWritten):
            spool.append([], points, number)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    spool.append([], points, number)
    assert len(spool.segments()) == 1


def test_a_run_that_lost_points_is_over_nevertheless(begin, database):
    with pytest.raises(FileNotWritten, match="1 points are lost"), begin() as run:  # noqa: PT012
        run.log({"loss": 1.0}, 0)
        run._recorder.buffer.dropped = 1
    assert run_of(database).status == "completed"


def test_the_recorder_outlives_an_error_of_its_own(begin, database, monkeypatch):
    with begin() as run:
        work = run._recorder._work
        failures = iter([OperationalError("SELECT", {}, Exception("no luck"))])

        def fail_once():
            if (error := next(failures, None)) is not None:
                raise error
            work()

        monkeypatch.setattr(run._recorder, "_work", fail_once)
        run.log({"loss": 1.0}, 0)
        time.sleep(1.5)
        run.flush(20)
        assert next(failures, None) is None
    assert stored(database) == [(1, 0, 1.0)]


def test_steps_before_the_fork_are_warned_of_once(begin, database, caplog):
    with begin() as run:
        run.log({"loss": 1.0}, 0)
        run.save_checkpoint(state(), 4)
    with begin() as run:
        for step in range(3):
            run.log({"loss": -1.0}, step)
    assert caplog.text.count("this attempt goes on from step 5") == 1
    with database.session() as session:
        assert history(session, run.training_session_id, "loss")["value"].tolist() == [1.0]


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_what_was_not_published_goes_with_its_attempt(begin, database, status):
    with begin() as run:
        database.transaction(lambda session: begin_checkpoint(session, run.attempt_id, 7, 2))
        run.stop(status)
    with database.session() as session:
        assert session.scalar(select(func.count()).select_from(ModelCheckpoint)) == 0


def test_a_deleted_checkpoint_is_told_as_such(begin, database):
    with begin() as run:
        saved = run.save_checkpoint(state(), np.int64(4))
    database.transaction(lambda session: delete_checkpoint(session, saved.id))
    with database.session() as session, pytest.raises(CheckpointNotFound, match="not there any more"):
        load_checkpoint(session, saved.id)


@pytest.mark.parametrize("step", [True, 1.0, -1, 2**63, "7", None])
def test_a_checkpoint_needs_a_step(begin, step):
    with begin() as run, pytest.raises(CheckpointError, match="is no count of updates"):
        run.save_checkpoint(state(), step)


def test_an_attempt_that_was_taken_over_is_fenced_on_all_ranks(begin, database):
    first = begin(world_size=2)
    run = first.__enter__()
    second = begin(rank=1, world_size=2, attempt_id=run.attempt_id)
    other = second.__enter__()
    with begin(stale_after=-1.0):
        other.log({"loss": 9.0}, 0)
        for each in (second, first):
            with pytest.raises(AttemptLost):
                each.__exit__(None, None, None)
    assert [each.status for each in attempts(database)] == ["lost", "completed"]
    assert stored(database) == []


@pytest.mark.parametrize("content", [b"", b"of another version"], ids=["empty", "unknown"])
def test_replay_leaves_alone_what_it_does_not_know(begin, database, tmp_path, content):
    file = tmp_path / "spool" / str(uuid.uuid4()) / "1.points"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with begin() as run:
        run.log({"loss": 1.0}, 0)
    assert file.read_bytes() == content
    assert stored(database) == [(1, 0, 1.0)]


def test_a_file_has_its_name_only_when_it_says_whose_it_is(tmp_path):
    spool = Spool(tmp_path / "spool", SpoolHeader(uuid.uuid4(), "owner", this_process(), {}))
    spool.append([], np.zeros(0, POINT))
    (file,) = (tmp_path / "spool").rglob("*.*")
    assert file.suffix == ".points"
    assert read_segment(file).header.owner == "owner"
    spool.close()


def test_a_run_whose_process_is_gone_can_be_deleted_at_once(begin, database):
    with begin() as run:
        pass
    gone = text("UPDATE arc_halo.training_attempts SET status = 'running', pid = 4194303, heartbeat_at = now()")
    database.transaction(lambda session: session.execute(gone))
    database.transaction(lambda session: delete_run(session, run.training_session_id))
    with database.session() as session:
        assert session.scalar(text("SELECT count(*) FROM arc_halo.training_sessions")) == 0


class Tracked:
    """A tensor that gradients are derived through, which warns when it is converted as it is."""

    ndim = 0

    def detach(self):
        return np.float32(1.5)

    def __float__(self):
        raise AssertionError


def test_a_loss_may_be_logged_as_it_is(begin, database):
    with begin() as run:
        run.log({"loss": Tracked()}, 0)
    assert stored(database) == [(1, 0, 1.5)]

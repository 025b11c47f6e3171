"""Several ranks of one run; here they are threads, each with what a process of its own would have."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from sqlalchemy import select

from arc_halo.errors import AttemptLost, CheckpointError, RanksMissing
from arc_halo.schema import ModelCheckpoint, TrainingAttempt, TrainingRank
from arc_halo.training import rank_saving
from arc_halo.training.checkpoint import CheckpointState
from arc_halo.training.finding import latest_checkpoint
from arc_halo.training.loading import load_checkpoint
from arc_halo.training.parts import Part
from tests.training.trained import attempts, stored


@contextmanager
def ranks(begin, count):
    with ExitStack() as stack:
        first = stack.enter_context(begin(world_size=count))
        others = [
            stack.enter_context(begin(rank=rank, world_size=count, attempt_id=first.attempt_id))
            for rank in range(1, count)
        ]
        yield [first, *others]


def part(rank, count):
    rows = np.arange(count * 2, dtype=np.float32).reshape(count, 2)
    held = Part(rows[rank : rank + 1].copy(), (rank, 0), rows.shape)
    return CheckpointState(weights={"w": held}, rng={"seed": rank})


def together(runs, work):
    with ThreadPoolExecutor(len(runs)) as pool:
        return list(pool.map(work, runs))


def rank_rows(database):
    with database.session() as session:
        return {each.rank: each.status for each in session.scalars(select(TrainingAttempt)).one().ranks}


def test_ranks_log_into_one_attempt(begin, database):
    with ranks(begin, 2) as (first, second):
        assert (second.attempt_number, second.first_step, second.name) == (1, 0, "r")
        first.log({"loss": 1.0}, 1)
        second.log({"loss": 2.0}, 1)
        second.flush()
        second.stop()
        assert [each.status for each in attempts(database)] == ["running"]
        assert rank_rows(database) == {0: "running", 1: "stopped"}
    assert sorted(stored(database)) == [(1, 1, 1.0), (1, 1, 2.0)]
    assert rank_rows(database) == {0: "completed", 1: "stopped"}


@pytest.mark.parametrize("wait", [True, False])
def test_ranks_save_one_checkpoint(begin, database, wait):
    with ranks(begin, 3) as runs:
        for run in runs:
            run.log({"loss": float(run.rank)}, 7)
        saved = together(runs, lambda run: run.save_checkpoint(part(run.rank, 3), 7, wait=wait))
        saved = saved if wait else [each.result() for each in saved]
        assert len({each.id for each in saved}) == 1
        assert len(stored(database)) == 3
    with database.session() as session:
        loaded = load_checkpoint(session, saved[0].id, rank=2)
        assert loaded.weights["w"].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
        assert (loaded.rng, loaded.world_size, loaded.metrics) == ({"seed": 2}, 3, {"loss": 0.0})


def test_each_rank_gets_its_own_back(begin):
    with ranks(begin, 2) as runs:
        together(runs, lambda run: run.save_checkpoint(part(run.rank, 2), 7))
    with ranks(begin, 2) as runs:
        assert [run.first_step for run in runs] == [8, 8]
        assert [run.load_checkpoint().rng for run in runs] == [{"seed": 0}, {"seed": 1}]


def test_a_rank_that_brings_nothing_leaves_nothing_visible(begin, database, monkeypatch):
    monkeypatch.setattr(rank_saving, "RANKS_SECONDS", 0.2)
    with ranks(begin, 2) as (first, _), pytest.raises(RanksMissing, match=r"1 \(silent"):
        first.save_checkpoint(part(0, 2), 7)
    with database.session() as session:
        assert latest_checkpoint(session, "m") is None
        assert session.scalars(select(ModelCheckpoint.status)).all() == []  # gone with its attempt


def test_what_a_lost_attempt_did_not_publish_goes(begin, database, monkeypatch):
    monkeypatch.setattr(rank_saving, "RANKS_SECONDS", 0.2)
    with pytest.raises(AttemptLost), ranks(begin, 2) as (first, _):  # noqa: PT012
        with pytest.raises(RanksMissing):
            first.save_checkpoint(part(0, 2), 7)
        with begin(stale_after=0.0) as run:
            assert run.first_step == 0
            with database.session() as session:
                assert session.scalars(select(ModelCheckpoint)).all() == []
                assert set(session.scalars(select(TrainingRank.status))) == {"lost"}


def test_a_rank_beyond_the_world_is_refused(begin):
    with pytest.raises(CheckpointError, match="rank 2 is none of 2"), begin(rank=2, world_size=2):
        pass

"""A link that is cut around the COMMIT of a checkpoint, and two writers of one step: each state is there once."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
from sqlalchemy import func, select

from arc_halo import create_model
from arc_halo.database import connect
from arc_halo.errors import CheckpointExists
from arc_halo.schema import ModelCheckpoint, TrainingMetric
from arc_halo.store.verify import verify_database
from arc_halo.training import saving
from arc_halo.training.checkpoint import CheckpointState
from arc_halo.training.history import history
from arc_halo.training.loading import load_checkpoint
from arc_halo.training.run import training_run
from tests.faults.cutting import cut_around_commit
from tests.fixtures.long import how_many
from tests.fixtures.training_process import Pupil

cuts = how_many("--cuts", short=12)
pairs = how_many("--kills", short=10)


@pytest.fixture
def database_url(migrated_url):
    return migrated_url


class Cutter:
    """Cuts the link of each publication once, at a moment of its own around COMMIT."""

    def __init__(self, proxy, monkeypatch, seed):
        self.proxy, self.choose = proxy, random.Random(seed)
        self.made = []
        self.is_due = False
        self.finish = saving.finish
        monkeypatch.setattr(saving, "finish", self)
        monkeypatch.setattr("arc_halo.database.unanswered.ABANDONED_SECONDS", 0.2)

    def __call__(self, *args, **kwargs):
        checkpoint = self.finish(*args, **kwargs)
        if self.is_due:
            self.made.append(cut_around_commit(self.proxy, self.choose))
            self.is_due = False
        return checkpoint


def train_through_cuts(proxy, direct, folder, monkeypatch, cuts):
    cutter = Cutter(proxy, monkeypatch, cuts)
    pupil = Pupil()
    losses = []
    with (
        connect(proxy.url) as database,
        training_run(database, model="m", name="run", capture=False, spool_folder=folder) as run,
    ):
        for _ in range(cuts):
            losses.append(pupil.step())
            run.log({"loss": losses[-1]}, pupil.step_count - 1)
            cutter.is_due = True
            saved = run.save_checkpoint(pupil.state(), pupil.step_count - 1)
            assert getattr(proxy, cutter.made[-1]) is None
            check_step(direct, saved, losses)
    assert len(cutter.made) == cuts
    with direct.session() as session:
        assert session.scalar(select(func.count()).select_from(ModelCheckpoint)) == cuts
        assert history(session, run.training_session_id, "loss")["value"].tolist() == losses
        assert verify_database(direct).faults == []


def check_step(direct, saved, losses):
    """What was told is there once, and its points with it."""
    with direct.session() as session:
        of_step = select(func.count()).where(ModelCheckpoint.step == saved.step, ModelCheckpoint.status == "published")
        assert session.scalar(of_step) == 1
        assert session.scalar(select(func.count()).select_from(TrainingMetric)) == len(losses)
        assert load_checkpoint(session, saved.id).extra == {"steps": len(losses)}


@pytest.fixture
def direct(database):
    """The same database without the proxy."""
    database.transaction(lambda session: create_model(session, "m", {}, Pupil().state().weights))
    return database


def test_checkpoint_and_points_are_there_once_when_the_link_is_cut(proxy, direct, tmp_path, monkeypatch, cuts):
    train_through_cuts(proxy, direct, tmp_path, monkeypatch, cuts)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_checkpoint_and_points_are_there_once_however_often_it_is_cut(proxy, direct, tmp_path, monkeypatch, cuts):
    train_through_cuts(proxy, direct, tmp_path, monkeypatch, cuts)


def save_at_once(database, attempt_id, step):
    """Two writers of one step; what each of them learnt."""
    together = threading.Barrier(2)
    learnt = {}

    def write(writer):
        state = CheckpointState({"w": np.full((50, 50), writer, np.float32)})
        together.wait()
        try:
            learnt[writer] = database.transaction(
                lambda session: saving.save_checkpoint(session, attempt_id, state, step).id
            )
        except CheckpointExists as error:
            learnt[writer] = error

    threads = [threading.Thread(target=write, args=(writer,)) for writer in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return learnt


def check_two_writers(database, folder, pairs):
    with training_run(database, model="m", name="run", capture=False, spool_folder=folder) as run:
        for step in range(pairs):
            learnt = save_at_once(database, run.attempt_id, step)
            ((writer, checkpoint_id),) = [each for each in learnt.items() if not isinstance(each[1], CheckpointExists)]
            assert len(learnt) == 2
            with database.session() as session:
                assert np.all(load_checkpoint(session, checkpoint_id).weights["w"] == writer)
                assert session.scalar(select(func.count()).select_from(ModelCheckpoint)) == step + 1


def test_of_two_writers_of_each_step_one_wins(direct, tmp_path, pairs):
    check_two_writers(direct, tmp_path, pairs)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_of_two_writers_of_each_of_many_steps_one_wins(direct, tmp_path, pairs):
    check_two_writers(direct, tmp_path, pairs)

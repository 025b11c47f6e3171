"""Trainers and servers killed at any moment: the latest checkpoint loads, and the history has each step once."""

from __future__ import annotations

import random
import select
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select as sql_select

from arc_halo import create_model
from arc_halo.database import connect
from arc_halo.database.embedded import EmbeddedServer
from arc_halo.schema import ModelCheckpoint, TrainingSession
from arc_halo.store.verify import verify_database
from arc_halo.training.finding import latest_checkpoint
from arc_halo.training.history import history
from arc_halo.training.loading import load_checkpoint
from tests.fixtures import training_process
from tests.fixtures.embedded import kill
from tests.fixtures.long import how_many

ROOT = Path(__file__).parents[2]
PATIENCE = 60
client_kills = how_many("--kills", short=3)
server_kills = how_many("--kills", short=2)


class Trainer:
    """A process that trains, and the checkpoints it has acknowledged by their steps."""

    def __init__(self, url, folder, *options):
        self.acknowledged = -1
        self.words = []
        self.errors = folder / "errors"
        command = [sys.executable, training_process.__file__, url.render_as_string(hide_password=False)]
        command += [str(folder / "spool"), *options]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT)
        self._pending = b""

    def read(self, seconds=0.0):
        while select.select([self.process.stdout], [], [], seconds)[0]:
            data = self.process.stdout.read1(65536)
            if not data:
                return
            self._pending += data
            *lines, self._pending = self._pending.split(b"\n")
            self.words += [line.decode() for line in lines]
            self.acknowledged = max([self.acknowledged, *(int(word) for word in self.words if word.isdecimal())])
            seconds = 0.0

    def wait_until(self, condition):
        """Read until it holds; False if the process ended before."""
        deadline = time.monotonic() + PATIENCE
        while not condition(self):
            has_ended = self.process.poll() is not None
            assert time.monotonic() < deadline, self.errors.read_text()
            self.read(0.1)
            if has_ended:
                return condition(self)
        return True

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.process.kill()
        self.process.wait()
        self.read()
        self.process.stdout.close()


class Witness:
    """Looks at the database after each kill, and knows what must be there."""

    def __init__(self, url):
        self.url = url
        self.pupil = training_process.Pupil()
        self.losses = []
        self.latest = -1
        self.acknowledged = -1

    def foretell(self, step):
        while self.pupil.step_count <= step:
            self.losses.append(self.pupil.step())

    def look(self, trainer=None):
        """Check all that must hold whenever it is looked at."""
        self.acknowledged = max(self.acknowledged, -1 if trainer is None else trainer.acknowledged)
        with connect(self.url) as database, database.session() as session:
            checkpoint = latest_checkpoint(session, "m")
            run = session.scalars(sql_select(TrainingSession)).one_or_none()
            step = -1 if checkpoint is None else checkpoint.step
            assert step >= max(self.latest, self.acknowledged)
            self.latest = step
            if checkpoint is not None:
                assert latest_checkpoint(session, run).step >= step
                self.check_state(load_checkpoint(session, checkpoint))
            if run is not None:
                self.check_history(session, run, step)

    def check_state(self, loaded):
        self.foretell(loaded.step)
        assert self.pupil.step_count == loaded.step + 1
        expected = self.pupil.state()
        assert loaded.weights["w"].tobytes() == expected.weights["w"].tobytes()
        assert loaded.optimizer.states["w"]["momentum_buffer"].tobytes() == self.pupil.momentum.tobytes()
        assert loaded.extra == expected.extra

    def check_history(self, session, run, step):
        """Each step once, from the first to the last that was logged, with the loss that it had."""
        try:
            points = history(session, run, "loss")
        except LookupError:  # nothing is logged yet
            assert step == -1
            return
        assert points["step"].tolist() == list(range(len(points)))
        assert len(points) > step
        known = min(len(points), len(self.losses))
        assert points["value"][:known].tolist() == self.losses[:known]

    def finish(self, folder):
        """Let the run complete, and look at all of it."""
        steps = self.latest + 30
        with Trainer(self.url, folder, "--steps", str(steps)) as trainer:
            assert trainer.wait_until(lambda trainer: "completed" in trainer.words), trainer.errors.read_text()
        self.look(trainer)
        self.foretell(steps - 1)
        with connect(self.url) as database, database.session() as session:
            run = session.scalars(sql_select(TrainingSession)).one()
            assert run.status == "completed"
            assert history(session, run, "loss")["value"].tolist() == self.losses
            assert np.all(history(session, run, "lr")["step"] == np.arange(steps))
            assert set(session.scalars(sql_select(ModelCheckpoint.status))) == {"published"}
            assert verify_database(database).faults == []
        assert [path for path in (folder / "spool").rglob("*") if path.is_file()] == []


def add_model(url):
    with connect(url) as database:
        database.transaction(lambda session: create_model(session, "m", {}, training_process.Pupil().state().weights))


def kill_trainers(url, folder, kills):
    choose = random.Random(kills)
    add_model(url)
    witness = Witness(url)
    for number in range(kills):
        with Trainer(url, folder) as trainer:
            assert trainer.wait_until(lambda trainer: "ready" in trainer.words), trainer.errors.read_text()
            if number % 4:  # else while it opens or resumes the run
                assert trainer.wait_until(lambda trainer: trainer.acknowledged > witness.latest)
            time.sleep(choose.uniform(0, 0.4))
        witness.look(trainer)
    assert witness.latest > 0
    witness.finish(folder)


def test_killed_trainers(migrated_url, tmp_path, client_kills):
    kill_trainers(migrated_url, tmp_path, client_kills)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_killed_trainers(migrated_url, tmp_path, client_kills):
    kill_trainers(migrated_url, tmp_path, client_kills)


def kill_servers(home, folder, kills):
    """With the settings users get, but for a writer of the log that sleeps: what nobody waited for is lost."""
    choose = random.Random(kills)
    server = EmbeddedServer(home, {"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"})
    try:
        connect(server.acquire(), migrate=True).close()
        add_model(server.url())
        witness = Witness(server.url())
        for _ in range(kills):
            with Trainer(server.url(), folder) as trainer:
                kill_server_below(server, trainer, witness, choose)
        witness.finish(folder)
    finally:
        server.close()


def kill_server_below(server, trainer, witness, choose):
    """The trainer outlives it, or says why not."""
    assert trainer.wait_until(lambda trainer: trainer.acknowledged > witness.latest), trainer.errors.read_text()
    time.sleep(choose.uniform(0, 0.4))
    kill(server)
    server.acquire()
    if not trainer.wait_until(lambda trainer: trainer.acknowledged > witness.acknowledged):
        assert "\narc_halo.errors." in trainer.errors.read_text()
    witness.look(trainer)


def test_killed_servers(home, tmp_path, server_kills):
    kill_servers(home, tmp_path, server_kills)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_killed_servers(home, tmp_path, server_kills):
    kill_servers(home, tmp_path, server_kills)

"""Trainers killed at any moment of a checkpoint: the last that was published is the latest, and loads."""

import random
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from arc_halo.database import connect
from arc_halo.database.embedded import EmbeddedServer
from arc_halo.store.verify import verify_database
from arc_halo.training.checkpoint import CheckpointState
from arc_halo.training.finding import latest_checkpoint
from arc_halo.training.loading import load_checkpoint
from arc_halo.training.ranks import discard_pending
from tests.fixtures import checkpointing_process
from tests.fixtures.embedded import kill
from tests.fixtures.long import how_many
from tests.fixtures.tensors import count
from tests.schema.rows import add_attempt, add_model, add_run
from tests.training.states import spelt

ROOT = Path(__file__).parents[2]
client_kills = how_many("--kills", short=2)
server_kills = how_many("--kills", short=2)
WAYS = pytest.mark.parametrize(
    "options", [("1000000000",), ("-1",), ("-1", "--as-ranks")], ids=["one transaction", "uploaded", "ranks"]
)


class Trainer:
    """A process that saves checkpoints of an attempt, and the last step that it has acknowledged."""

    def __init__(self, url, attempt_id, first_step, options):
        command = [sys.executable, checkpointing_process.__file__, url.render_as_string(hide_password=False)]
        command += [str(attempt_id), "--first-step", str(first_step), "--small-nbytes", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
        self.acknowledged = None

    def wait_for_one(self):
        assert select.select([self.process.stdout], [], [], 60)[0], "nothing was saved in a minute"
        self.acknowledged = int(self.process.stdout.readline())

    def end(self):
        self.process.kill()
        rest, _ = self.process.communicate()
        lines = rest.split(b"\n")[:-1]
        self.acknowledged = int(lines[-1]) if lines else self.acknowledged


def resume(session):
    """Take the run over from its newest attempt: a new one, behind the latest checkpoint."""
    run = session.execute(text("SELECT id FROM arc_halo.training_sessions")).scalar()
    if run is None:
        return add_attempt(session, add_run(session, add_model(session))).id, 1
    session.execute(text("UPDATE arc_halo.training_attempts SET status = 'lost' WHERE status = 'running'"))
    number, newest = session.execute(
        text("SELECT attempt_number, id FROM arc_halo.training_attempts ORDER BY attempt_number DESC LIMIT 1")
    ).one()
    discard_pending(session, newest)
    last = latest_checkpoint(session, run)
    child = add_attempt(session, last.training_session, number + 1, parent_number=number, fork_step=last.step)
    return child.id, last.step + 1


def check(database, acknowledged):
    """What was acknowledged is the latest, or the one after it, whose answer was cut; and it is that, to the bit."""
    with database.session() as session:
        latest = latest_checkpoint(session, "model")
        assert acknowledged <= latest.step <= acknowledged + 1
        loaded = load_checkpoint(session, latest)
        expected = spelt(checkpointing_process.state(latest.step))
        assert spelt(CheckpointState(**{name: getattr(loaded, name) for name in expected})) == expected


def train_and_kill(url, moments, options, end):
    with connect(url) as database:
        attempt_id, first_step = database.transaction(resume)
    trainer = Trainer(url, attempt_id, first_step, options)
    trainer.wait_for_one()
    time.sleep(moments.uniform(0, 0.3))
    end(trainer)
    with connect(url) as database:
        check(database, trainer.acknowledged)


def check_all(url):
    with connect(url) as database:
        assert verify_database(database).faults == []
        database.transaction(resume)
        with database.session() as session:
            assert count(session, "model_checkpoints") == session.scalar(
                text("SELECT count(*) FROM arc_halo.model_checkpoints WHERE status = 'published'")
            )


def kill_trainers(url, kills, options):
    moments = random.Random(kills)
    for _ in range(kills):
        train_and_kill(url, moments, options, Trainer.end)
    check_all(url)


@WAYS
def test_killed_trainers(migrated_url, client_kills, options):
    kill_trainers(migrated_url, client_kills, options)


@pytest.mark.long
@pytest.mark.timeout(7200)
@WAYS
def test_many_killed_trainers(migrated_url, client_kills, options):
    kill_trainers(migrated_url, client_kills, options)


def kill_servers(home, kills):
    moments = random.Random(kills)
    server = EmbeddedServer(home, {"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"})

    def end(trainer):
        kill(server)
        trainer.end()
        server.acquire()

    try:
        connect(server.acquire(), migrate=True).close()
        for number in range(kills):
            options = [("1000000000",), ("-1",), ("-1", "--as-ranks")][number % 3]
            train_and_kill(server.url(), moments, options, end)
        check_all(server.url())
    finally:
        server.close()


def test_killed_servers_of_trainers(home, server_kills):
    kill_servers(home, server_kills)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_killed_servers_of_trainers(home, server_kills):
    kill_servers(home, server_kills)

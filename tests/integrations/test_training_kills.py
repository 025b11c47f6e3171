"""Training that is killed and goes on is, bit for bit, training that never was: weights, losses, and one history."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import accelerate  # noqa: F401  (the Trainer asks for it)
import pytest
import torch
import transformers  # noqa: F401
from sqlalchemy import select

from arc_halo.integrations.torch import save_state_dict
from arc_halo.schema import ModelCheckpoint, TrainingSession
from arc_halo.training.history import history
from arc_halo.training.loading import load_checkpoint

ROOT = Path(__file__).parents[2]
STEPS, KILLED_AFTER, EVERY = 200, 113, 25


class Training:
    """Processes of `tests.fixtures.torch_process` for runs of one database."""

    def __init__(self, url, folder, way, kind):
        self.command = [sys.executable, "-W", "ignore", "-m", "tests.fixtures.torch_process"]
        self.command += [url.render_as_string(hide_password=False), way]
        self.options = [str(folder), "--kind", kind]

    def start(self, name):
        command = [*self.command, name, *self.options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, **pipes)

    def finish(self, name):
        """The steps it said."""
        out, err = self.start(name).communicate(timeout=250)
        said = [int(line) for line in out.split() if line.isdigit()]
        assert said[-1:] in ([STEPS], [STEPS - 1]), err
        return said

    def kill(self, name, after):
        with self.start(name) as process:
            for line in process.stdout:
                if line.strip() == str(after):
                    process.kill()
                    break


@pytest.fixture
def add_model(database):
    module = torch.nn.Linear(2, 2)
    database.transaction(lambda session: save_state_dict(session, "lm", {}, module.state_dict()))


def runs(session):
    return {run.name: run for run in session.scalars(select(TrainingSession))}


def digests(session, run):
    """Of everything in each published checkpoint, by step."""
    statement = select(ModelCheckpoint.step, ModelCheckpoint.manifest_digest)
    rows = session.execute(statement.where(ModelCheckpoint.training_session_id == run.id))
    return {step: digest.hex() for step, digest in rows}


def curves(session, run, names):
    points = {name: history(session, run, *name) for name in names}
    return {name: (each["step"].tolist(), each["value"].tolist()) for name, each in points.items()}


@pytest.mark.usefixtures("add_model")
@pytest.mark.parametrize(
    ("way", "kind"),
    [("plain", "float32"), ("plain", "bfloat16"), ("plain", "amp"), ("trainer", "float32"), ("trainer", "amp")],
)
def test_killed_and_resumed_is_straight(database, migrated_url, tmp_path, way, kind):
    training = Training(migrated_url, tmp_path, way, kind)
    training.finish("straight")
    training.kill("killed", KILLED_AFTER)
    said = training.finish("killed")
    assert said[0] in (100, 101)  # from the checkpoint of step 100 on
    with database.session() as session:
        straight, killed = (runs(session)[name] for name in ("straight", "killed"))
        assert [each.status for each in killed.attempts] == ["lost", "completed"]
        expected = digests(session, straight)
        assert sorted(expected) == list(range(EVERY, STEPS + 1, EVERY))
        assert digests(session, killed) == expected
        names = ["loss", "lr"] if way == "plain" else ["loss", "grad_norm", "learning_rate", "validation/loss"]
        found = curves(session, killed, [(name,) for name in names])
        assert found == curves(session, straight, [(name,) for name in names])
        assert found["loss",][0] == list(range(1, STEPS + 1))


def tensors(loaded):
    """Bytes of every tensor by its name."""
    states = {f"{name}.{key}": value for name, state in loaded.optimizer.states.items() for key, value in state.items()}
    arrays = itertools.chain(loaded.weights.items(), states.items())
    return {name: array.tobytes() if hasattr(array, "tobytes") else array for name, array in arrays}


@pytest.mark.usefixtures("add_model")
def test_every_tensor_is_equal_and_not_only_its_digest(database, migrated_url, tmp_path):
    training = Training(migrated_url, tmp_path, "plain", "float32")
    training.options += ["--steps", "20", "--every", "10"]
    with training.start("straight") as process:
        process.communicate(timeout=100)
    training.kill("killed", 13)
    with training.start("killed") as process:
        process.communicate(timeout=100)
    with database.session() as session:
        straight, killed = (load_checkpoint(session, runs(session)[name]) for name in ("straight", "killed"))
    assert straight.step == killed.step == 20
    assert tensors(straight) == tensors(killed)

"""The query of docs/training.md tells which layer moved before a spike."""

from __future__ import annotations

import numpy as np
from sqlalchemy import text

from arc_halo import create_model
from arc_halo.training import CheckpointState, training_run
from tests.docs.pages import REPOSITORY, blocks

(QUERY,) = (block.text for block in blocks(REPOSITORY / "docs" / "training.md") if block.language == "sql")
SPIKE = 130


def train(run, moving, stop):
    """One layer grows in the fifty steps before the spike, another long before, a third after it."""
    for step in range(run.first_step, stop):
        run.log({"loss": 9.0 if step == SPIKE else 1 / (step + 1)}, step)
        if step % 10 == 0:
            weights = {f"layers.{n}.mlp.weight": np.ones((4, 4), np.float32) for n in range(4)}
            for layer, steps in moving.items():
                weights[f"layers.{layer}.mlp.weight"] *= 1 + sum(each < step for each in steps) / 10
            run.save_checkpoint(CheckpointState(weights=weights), step)


def test_the_query_names_the_layer_that_moved_before_the_spike(database, tmp_path):
    zeros = {f"layers.{n}.mlp.weight": np.zeros((4, 4), np.float32) for n in range(4)}
    database.transaction(lambda session: create_model(session, "small", {}, zeros))
    moving = {0: range(70), 2: range(90, 129), 3: range(131, 200)}
    options = {"model": "small", "name": "tune", "spool_folder": tmp_path, "capture": False}
    for stop in (105, 200):  # the second attempt trains the steps after 100 again
        with training_run(database, **options) as run:
            train(run, moving, stop)
    with database.session() as session:
        found = session.execute(text(QUERY)).all()
    assert "layers.2" in found[0].layer
    assert found[0].times > 4
    assert [row.times for row in found[1:]] == [1.0, 1.0, 1.0]

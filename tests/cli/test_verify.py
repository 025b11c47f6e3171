"""``arc-halo verify`` beside checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from arc_halo import connect, find_model
from arc_halo.training import CheckpointState, save_checkpoint
from tests.schema.rows import add_attempt, add_run

if TYPE_CHECKING:
    from tests.cli.command_line import CommandLine


def test_verify_names_a_checkpoint_whose_rows_were_changed(stored: CommandLine):
    with connect(stored.url) as database, database.session() as session, session.begin():
        attempt = add_attempt(session, add_run(session, find_model(session, "m")))
        save_checkpoint(session, attempt, CheckpointState(scheduler={"last_epoch": 3}), 7)
    assert "1 checkpoint" in stored.says("verify")
    with connect(stored.url) as database, database.session() as session, session.begin():
        session.execute(text("UPDATE arc_halo.model_checkpoints SET scheduler_state = '{}'"))
    assert "of step 7: its rows" in stored.run("verify", code=1).stdout
    found = stored.json("verify", code=1)
    assert (found["checkpoint_count"], [fault["kind"] for fault in found["faults"]]) == (1, ["checkpoint"])

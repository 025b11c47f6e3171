"""``arc-halo db rehearse``."""

from __future__ import annotations

import pytest

from arc_halo.database.migrate import current, heads
from tests.cli.command_line import CommandLine


@pytest.fixture
def older(older_url) -> CommandLine:
    return CommandLine(older_url.render_as_string(hide_password=False))


def test_a_table_of_revisions(older: CommandLine, older_url, clones):
    said = older.says("db", "rehearse", "--and-back")
    lines = [line.split() for line in said.splitlines()]
    assert [line[:2] for line in lines if line[0] in {"0004", "0005"} and line[1] in {"up", "down"}][:4] == [
        ["0004", "up"], ["0005", "up"], ["0005", "down"], ["0004", "down"],
    ]  # fmt: skip
    assert "ACCESS EXCLUSIVE on " in said
    assert "at head the clone is as the code declares it" in said
    assert "the way back leads to the same schema" in said
    assert current(older_url) == ("0003",)
    assert clones() == []


def test_json(older: CommandLine):
    said = older.json("db", "rehearse", "--by", "dump", "--schema-only")
    assert (said["before"], said["after"], said["is_good"]) == (["0003"], list(heads()), True)
    assert (said["clone"]["method"], said["clone"]["url"]) == ("dump", None)
    assert [step["revision"] for step in said["steps"]] == ["0004", "0005"]
    assert all(step["locks"] and step["seconds"] > 0 for step in said["steps"])
    assert said["differences"] == []


def test_a_failure(older: CommandLine, revisions, clones):
    number = revisions.add("op.execute('SELECT nothing_like_it()')")
    result = older.run("db", "rehearse", code=1)
    assert "    SELECT nothing_like_it()" in result.stdout
    assert f"error: {number}: function nothing_like_it() does not exist" in result.stderr
    said = older.json("db", "rehearse", code=1)
    assert (said["steps"][-1]["statement"], said["after"]) == ("SELECT nothing_like_it()", ["0005"])
    assert clones() == []


def test_a_difference(older: CommandLine, revisions):
    revisions.add("op.execute('ALTER TABLE arc_halo.models ADD COLUMN planted text')")
    assert "+ column arc_halo.models.planted" in older.run("db", "rehearse", code=1).stdout


def test_losses_are_told(older: CommandLine, revisions):
    revisions.add("pass", above="# DATA LOSS: a thing\n")
    said = older.says("db", "rehearse")
    assert "0006 says that it loses a thing" in said
    assert "the upgrade leaves fewer rows in" in said


def test_an_interruption(older: CommandLine, revisions, clones):
    revisions.add("raise KeyboardInterrupt")
    assert older.run("db", "rehearse", code=130).stderr == "interrupted\n"
    assert clones() == []


def test_a_clone_that_is_kept_and_dropped_later(older: CommandLine, clones):
    said = older.says("db", "rehearse", "--keep", "--to", "0004")
    (name,) = clones()
    assert f"/{name}" in said.splitlines()[-1]
    assert f"dropped  {name}" in older.says("db", "rehearse", "--clean")
    assert older.json("db", "rehearse", "--clean") == []


def test_another_database(arc_halo: CommandLine, older: CommandLine):
    assert arc_halo.json("db", "rehearse", older.url)["before"] == ["0003"]
    assert arc_halo.says("db", "rehearse").endswith("nothing to rehearse\n")


def test_ways_that_do_not_go_together(older: CommandLine):
    assert "dump" in older.error("db", "rehearse", "--by", "template", "--schema-only")

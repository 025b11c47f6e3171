"""``arc-halo db``."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from arc_halo.database.migrate import heads
from tests.cli.command_line import CommandLine, start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL

HEAD = heads()[0]


@pytest.fixture
def empty(database_url: URL) -> CommandLine:
    return CommandLine(database_url.render_as_string(hide_password=False))


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="arc-halo-test-"))  # not pytest's: closed to the server's user
    yield folder
    shutil.rmtree(folder)


def execute(command_line: CommandLine, statement: str) -> None:
    with psycopg.connect(command_line.url.replace("+psycopg", "")) as connection:
        connection.execute(statement)


def test_upgrade_says_what_it_did(empty: CommandLine):
    assert f"from nothing to {HEAD}" in empty.says("db", "upgrade")
    assert f"is at {HEAD}: nothing to do" in empty.says("db", "upgrade")


def test_upgrade_to_a_revision(empty: CommandLine):
    changed = empty.json("db", "upgrade", "0001")
    assert (changed["before"], changed["after"]) == ([], ["0001"])


def test_upgrade_to_no_revision(empty: CommandLine):
    assert "Can't locate revision" in empty.error("db", "upgrade", "ffff")


def test_an_upgrade_that_loses_data_wants_to_be_told(empty: CommandLine, monkeypatch):
    monkeypatch.setattr("arc_halo.autogenerate.loss.marks", lambda path: ["a table"] if "0002" in path.name else [])
    assert "--allow-data-loss" in empty.error("db", "upgrade")
    assert empty.json("db", "upgrade", "0001")["after"] == ["0001"]
    assert "0002: a table" in empty.error("db", "upgrade", "0002")
    assert empty.json("db", "upgrade", "--allow-data-loss")["after"] == [HEAD]


def test_downgrade_and_up_again(arc_halo: CommandLine):
    assert "downgraded postgresql" in arc_halo.says("db", "downgrade", "base")
    assert arc_halo.json("db", "current")["current"] == []
    assert arc_halo.json("db", "upgrade")["after"] == [HEAD]


def test_downgrade_by_one(arc_halo: CommandLine):
    assert arc_halo.json("db", "downgrade", "-1")["before"] == [HEAD]


def test_downgrade_loses_rows_only_when_told(stored: CommandLine):
    assert "--allow-data-loss" in stored.error("db", "downgrade", "base")
    stored.says("model", "verify", "m")
    assert stored.json("db", "downgrade", "base", "--allow-data-loss")["after"] == []


def test_current(arc_halo: CommandLine):
    assert arc_halo.json("db", "current")["is_at_head"] is True
    assert arc_halo.says("db", "current").endswith(f" is at {HEAD}\n")


def test_current_of_an_empty_database(empty: CommandLine):
    assert f"is at nothing; the code is at {HEAD}" in empty.says("db", "current")


def test_check(arc_halo: CommandLine):
    assert "is as the code declares it" in arc_halo.says("db", "check")
    execute(arc_halo, "DROP VIEW arc_halo.v_model_architecture")
    assert "v_model_architecture" in arc_halo.error("db", "check")


def test_check_of_an_empty_database(empty: CommandLine):
    assert "run `arc-halo db upgrade`" in empty.error("db", "check")


def test_commands_on_a_database_without_schema(empty: CommandLine):
    assert "run `arc-halo db upgrade`" in empty.error("model", "list")


def test_doctor_of_a_sound_database(stored: CommandLine):
    told = stored.json("db", "doctor")
    assert told["is_healthy"] is True
    assert {each["subject"] for each in told["findings"]} >= {"server", "pgvector", "encryption", "schema", "content"}
    assert told["tables"]["arc_halo.tensor_data"] > 0
    assert "arc_halo.embeddings_weights" not in told["tables"]  # part of its table
    assert "1 model, " in stored.says("db", "doctor")


def test_doctor_advises(empty: CommandLine):
    result = empty.run("db", "doctor", code=1)
    assert "not installed" in result.stdout
    assert "run `arc-halo db upgrade`" in result.stdout
    assert result.stderr == "error: 2 findings to put right: pgvector, schema\n"


def test_doctor_finds_an_unfinished_index(arc_halo: CommandLine):
    execute(
        arc_halo,
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'arc_halo.ix_tensor_data_touched_at'::regclass",
    )
    findings = {each["subject"]: each for each in arc_halo.json("db", "doctor", code=1)["findings"]}
    assert findings["indexes"]["advice"] == "REINDEX INDEX CONCURRENTLY arc_halo.ix_tensor_data_touched_at"


def test_doctor_of_a_server_that_is_not_there(monkeypatch):
    monkeypatch.setenv("ARC_HALO_CONNECT_ATTEMPTS", "1")
    nobody = CommandLine("postgresql://me:secret@127.0.0.1:1/db")
    assert "secret" not in nobody.error("db", "doctor")


def test_url_hides_the_password():
    secret = CommandLine("postgresql://me:secret@localhost/db")
    assert secret.says("db", "url") == "postgresql://me:***@localhost/db\n"
    assert secret.says("db", "url", "--show-password") == "postgresql://me:secret@localhost/db\n"
    assert secret.json("db", "url") == {"url": "postgresql://me:***@localhost/db", "is_embedded": False}


def test_url_is_one_that_psql_reads():
    pooled = CommandLine("postgresql+psycopg://me@localhost/db?prepare_threshold=none")
    assert pooled.says("db", "url") == "postgresql://me@localhost/db\n"


def test_eight_upgrades_at_once_of_an_embedded_database(home: Path):
    processes = [start("db", "upgrade", ARC_HALO_HOME=str(home)) for _ in range(8)]
    ended = [(*process.communicate(timeout=240), process.returncode) for process in processes]
    assert {code for _, _, code in ended} == {0}, [error for _, error, _ in ended]
    assert sorted("upgraded" in said for said, _, _ in ended) == [False] * 7 + [True]


def test_doctor_counts_versions_and_models(stored: CommandLine, bert_folder: Path):
    for name in ("m", "n"):
        stored.run("model", "import", bert_folder, "--name", name)
    findings = {each["subject"]: each["state"] for each in stored.json("db", "doctor")["findings"]}
    assert ", 3 versions of 2 models, " in findings["content"]

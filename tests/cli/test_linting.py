"""``arc-halo db lint``."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import psycopg
import pytest

from arc_halo.database.embedded import embedded_server
from arc_halo.database.url import libpq_string
from tests.cli.command_line import CommandLine


def test_a_database_at_head_has_nothing_to_lint(arc_halo: CommandLine):
    assert arc_halo.says("db", "lint").endswith(" has every revision: nothing to look at\n")
    said = arc_halo.json("db", "lint")
    assert (said["is_safe"], said["dangers"], said["revisions"]) == (True, 0, [])


def test_our_revisions_are_safe_on_an_empty_database(database_url):
    said = CommandLine(database_url.render_as_string(hide_password=False)).json("db", "lint")
    assert [each["revision"] for each in said["revisions"]][:5] == ["0001", "0002", "0003", "0004", "0005"]
    assert said["is_safe"]
    assert all(not statement["effects"] for statement in said["revisions"][0]["statements"])


def test_a_large_table_is_told(arc_halo: CommandLine):
    arc_halo.run("db", "lint", "0003:0005")
    found = arc_halo.json("db", "lint", "0003:0005", "--strict", code=1)
    rules = {
        finding["rule"]
        for revision in found["revisions"]
        for statement in revision["statements"]
        for finding in statement["findings"]
        if finding["severity"] == "danger"
    }
    assert found["dangers"] > 0
    allowed = [word for rule in sorted(rules) for word in ("--allow", rule)]
    assert arc_halo.json("db", "lint", "0003:0005", "--strict", *allowed)["is_safe"]
    said = arc_halo.run("db", "lint", "0003:0005", "--strict", code=1).stdout
    assert f"{found['dangers']} dangers in 2 revisions for " in said
    assert "ACCESS EXCLUSIVE" in said


@pytest.fixture
def home(monkeypatch):
    """Not pytest's own folder, which is closed to the user a server of root's runs as."""
    home = Path(tempfile.mkdtemp(prefix="arc-halo-home-"))
    monkeypatch.setenv("ARC_HALO_HOME", str(home))
    yield home
    embedded_server(home).close()
    shutil.rmtree(home)


@pytest.fixture
def reader(migrated_url):
    """The URL for a role that may look at the schema, and nothing else."""
    role = f"{migrated_url.database}_reader"
    with psycopg.connect(libpq_string(migrated_url), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role}")
        connection.execute(f"GRANT USAGE ON SCHEMA arc_halo TO {role}")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA arc_halo TO {role}")
        url = migrated_url.update_query_dict({"options": f"-c role={role}"})
        yield url.render_as_string(hide_password=False)
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")


def test_the_embedded_server_lends_the_scratch_where_none_may_be_made(reader, home):
    assert CommandLine(reader).json("db", "lint", "0005")["is_safe"]
    assert (home / "postgres").is_dir()
    assert "permission denied to create database" in CommandLine(reader).error("db", "lint", "--scratch", reader)


def test_the_scratch_may_be_made_elsewhere(arc_halo: CommandLine, database_server):
    url = database_server.url.render_as_string(hide_password=False)
    assert arc_halo.json("db", "lint", "0005", "--scratch", url)["is_safe"]
    assert arc_halo.error("db", "lint", "nothing")
    assert arc_halo.error("db", "lint", "--size", "much")

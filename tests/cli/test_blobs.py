from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from arc_halo.database.url import libpq_string, parse_url
from tests.cli.command_line import CommandLine
from tests.fixtures.models import bert, write_folder

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

OTHER = "0123456789abcdef"


@dataclass(frozen=True)
class Tiered(CommandLine):
    """Runs ``arc-halo --url <database> --blob-url <store> ...``."""

    folder: Path

    def run(self, *arguments: object, **options: Any) -> Result:
        return super().run("--blob-url", self.folder.as_uri(), *arguments, **options)

    @property
    def objects(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def tiered(arc_halo: CommandLine, tmp_path: Path) -> Tiered:
    """With a model whose larger payloads are objects."""
    tiered = Tiered(arc_halo.url, tmp_path / "blobs")
    tiered.run("model", "import", write_folder(bert(hidden=64), tmp_path / "wide"), "--name", "wide")
    assert tiered.objects
    return tiered


def places(arc_halo: CommandLine) -> dict[str, int]:
    return {each["place"]: each["payloads"] for each in arc_halo.json("blobs", "status")["places"]}


def execute(arc_halo: CommandLine, statement: str) -> None:
    with psycopg.connect(libpq_string(parse_url(arc_halo.url))) as connection:
        connection.execute(statement)


def test_status(tiered: Tiered):
    told = tiered.json("blobs", "status")
    assert (told["store"], told["objects_to_delete"]) == (tiered.folder.as_uri(), 0)
    assert places(tiered)["blob store"] == len(tiered.objects)
    lines = tiered.says("blobs", "status").splitlines()
    assert lines[0] == f"blob store: {tiered.folder.as_uri()}"
    assert [line.split("  ")[0] for line in lines[1:]] == ["payloads in", "database", "blob store"]


def test_status_without_a_store(stored: CommandLine):
    told = stored.json("blobs", "status")
    assert told["store"] is None
    assert places(stored)["blob store"] == 0
    assert "ARC_HALO_BLOB_URL names one" in stored.says("blobs", "status")


def test_only_a_payload_makes_the_folder(stored: CommandLine, tmp_path: Path):
    fresh = Tiered(stored.url, tmp_path / "fresh")
    place, *_ = fresh.says("blobs", "status").splitlines()
    assert place == f"blob store: {fresh.folder.as_uri()}, which the first payload makes"
    assert fresh.json("blobs", "status")["store"] == fresh.folder.as_uri()
    _, finding = doctor(fresh)
    assert "which the first payload makes" in finding["state"]
    assert finding["advice"] is None
    assert not fresh.folder.exists()


@pytest.mark.parametrize("command", ["blobs status", "blobs sweep", "model verify wide", "verify"])
def test_a_folder_that_went_away(tiered: Tiered, command: str):
    tiered.folder.rename(tiered.folder.with_name("blobs_"))
    said = tiered.error(*command.split())
    assert said == f"error: {tiered.folder.as_uri()} is no folder; is it mounted, or is the URL another one?"
    assert not tiered.folder.exists()


def test_doctor_finds_a_folder_that_went_away(tiered: Tiered):
    tiered.folder.rename(tiered.folder.with_name("blobs_"))
    state, finding = doctor(tiered, code=1)
    assert (state["is_there"], state["is_reachable"]) == (False, False)
    assert "is it mounted" in finding["advice"]
    assert not tiered.folder.exists()


@pytest.mark.parametrize("command", ["model verify wide", "verify"])
def test_verify_tells_the_first_faults_and_repair(tiered: Tiered, command: str):
    for path in tiered.objects:
        path.unlink()
    faults = tiered.json(*command.split(), code=1)["faults"]
    result = tiered.run(*command.split(), code=1)
    *first, last = result.stdout.splitlines()
    assert len(first) == 5
    assert last == f"and {len(faults) - 5} more; --json has all"
    assert "arc-halo repair" in result.stderr


def test_payloads_move_both_ways(tiered: Tiered, tmp_path: Path):
    there = len(tiered.objects)
    whole = places(tiered)
    assert tiered.json("blobs", "migrate", "database")["payloads"] == there
    assert places(tiered) == {"database": sum(whole.values()), "blob store": 0}
    assert len(tiered.objects) == there  # until they are swept
    assert tiered.says("blobs", "migrate", "blobs", "--model", "wide").startswith(f"moved {there} payloads, ")
    assert places(tiered) == whole
    assert tiered.json("blobs", "migrate", "blobs") == {"to": "blobs", "payloads": 0, "nbytes": 0}
    tiered.run("model", "export", "wide", tmp_path / "out")
    names = ("model.safetensors", "config.json")
    assert all((tmp_path / "out" / each).read_bytes() == (tmp_path / "wide" / each).read_bytes() for each in names)


def test_sweep(tiered: Tiered):
    there = len(tiered.objects)
    tiered.run("blobs", "migrate", "database")
    assert f"{there} objects no longer needed" in tiered.says("blobs", "status")
    assert tiered.json("blobs", "sweep")["requested"] == 0  # readers have an hour
    planned = tiered.says("blobs", "sweep", "--grace", "0", "--dry-run")
    assert planned.startswith(f"would delete {there} objects no longer needed and 0 orphans")
    assert len(tiered.objects) == there
    assert tiered.json("blobs", "sweep", "--grace", "0")["requested"] == there
    assert tiered.objects == []


def test_sweep_leaves_what_is_not_ours(tiered: Tiered):
    foreign, other = tiered.folder / "notes.txt", tiered.folder / f"ab/{'ab' * 32}-{OTHER}-{'0' * 16}"
    other.parent.mkdir(exist_ok=True)
    for path in (foreign, other):
        path.write_bytes(b"theirs")
        os.utime(path, (0, 0))
    said = tiered.says("blobs", "sweep", "--grace", "0")
    assert f"left 1 object of database {OTHER}" in said
    assert "left 1 object that no payload is in" in said
    assert foreign.exists()
    assert other.exists()
    assert tiered.json("blobs", "sweep", "--formerly", OTHER)["orphans"] == 1
    assert not other.exists()


@pytest.mark.parametrize("command", ["migrate blobs", "migrate database", "sweep"])
def test_without_a_store_it_says_how_to_name_one(arc_halo: CommandLine, command: str):
    assert "ARC_HALO_BLOB_URL" in arc_halo.error("blobs", *command.split())


def test_a_store_of_no_known_kind_is_refused(arc_halo: CommandLine):
    assert "file:///folder" in arc_halo.error("--blob-url", "ftp://host/x", "blobs", "sweep")
    arc_halo.run("blobs", "migrate", "nowhere", code=2)


def doctor(arc_halo: CommandLine, code: int = 0) -> tuple[Any, Any]:
    told = arc_halo.json("db", "doctor", code=code)
    return told["blob_store"], {each["subject"]: each for each in told["findings"]}["blob store"]


def test_doctor_shows_the_store(tiered: Tiered):
    before = tiered.objects
    execute(
        tiered,
        "INSERT INTO arc_halo.upload_leases (id, tenant_id, description, nbytes, started_at, expires_at)"
        " VALUES (arc_halo.uuid7(), 0, 'test', 0, '2026-01-02 03:04Z', now() + interval '1 hour')",
    )
    state, finding = doctor(tiered)
    assert (state["url"], state["is_reachable"], state["is_writable"]) == (tiered.folder.as_uri(), True, True)
    assert (state["payload_count"], state["waiting_count"], state["error"]) == (len(before), 0, None)
    assert {re.search(r"-(.{16})-", path.name)[1] for path in before} == {state["identity"]}
    assert "since 2026-01-02 03:04 UTC" in finding["state"]
    assert tiered.objects == before
    tiered.run("blobs", "migrate", "database")
    state, finding = doctor(tiered)
    assert (state["payload_count"], state["waiting_count"]) == (0, len(before))
    assert f"{len(before)} objects waiting for the sweeper" in finding["state"]


def test_doctor_finds_payloads_without_a_store(tiered: Tiered):
    state, finding = doctor(CommandLine(tiered.url), code=1)
    assert (state["url"], state["is_reachable"], state["payload_count"] > 0) == (None, False, True)
    assert "ARC_HALO_BLOB_URL" in finding["advice"]


def test_doctor_finds_a_store_that_cannot_be_written_to(tiered: Tiered):
    for path in tiered.objects:
        path.unlink()
    for path in tiered.folder.iterdir():
        path.rmdir()
    for number in range(256):
        (tiered.folder / f"{number:02x}").write_text("no folder")
    state, finding = doctor(tiered, code=1)
    assert state["is_writable"] is False
    assert "payloads in objects cannot be" in finding["advice"]


def test_doctor_says_nothing_of_secrets(tiered: Tiered):
    told = CommandLine(tiered.url).run("--blob-url", "s3://me:secret@bucket/x", "db", "doctor", "--json", code=1)
    assert "secret" not in told.output

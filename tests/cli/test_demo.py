"""``arc-halo demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arc_halo.cli import demo
from tests.fixtures.models import unknown, write_folder

if TYPE_CHECKING:
    from tests.cli.command_line import CommandLine

STEPS = ("A database", "A model", "architecture", "parameters", "SQL", "tokens", "comes out", "second version")


def test_the_demo_runs_twice_and_leaves_other_models_alone(stored: CommandLine, bert_folder: Path):
    first, second = (stored.says("demo", bert_folder) for _ in range(2))
    assert all(step in first for step in STEPS)
    assert "DIFFERENT" not in first + second
    assert "king is near " in first
    assert "were here already and are not stored again" in second
    versions = [(each["name"], each["version"]) for each in stored.json("model", "list")]
    assert versions == [("demo-bert", str(number)) for number in range(1, 5)] + [("m", "1")]


def test_a_second_version_costs_what_changed(arc_halo: CommandLine, bert_folder: Path):
    arc_halo.run("demo", bert_folder)
    (difference,) = arc_halo.json("model", "diff", "demo-bert@1", "demo-bert@2")["differences"]
    assert arc_halo.json("model", "show", "demo-bert@2")["own_nbytes"] <= difference["changed_nbytes"]


def test_the_demo_of_a_model_without_tokens(arc_halo: CommandLine, tmp_path: Path):
    folder = write_folder(unknown(), tmp_path / "unknown")
    assert "no searchable token embeddings" in arc_halo.says("demo", folder)


def test_the_demo_without_a_path(arc_halo: CommandLine, monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    said = arc_halo.says("demo")
    assert "list is near " in said
    assert "arc-halo model show demo-llama@2" in said


def test_minilm_where_it_is_installed(monkeypatch, tmp_path: Path):
    class Package:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(demo, "find_spec", lambda _: Package)
    assert demo._input(None).name == "demo-llama"
    (tmp_path / "model").mkdir()
    assert demo._input(None).path == tmp_path / "model"


@pytest.mark.parametrize("name", ["no@te.safetensors", "x" * 200])
def test_a_path_gives_a_name_a_model_may_have(name):
    chosen = demo._input(Path(name)).name
    assert "@" not in chosen
    assert len(chosen) < 200


def test_the_demo_of_nothing(arc_halo: CommandLine, tmp_path: Path):
    arc_halo.run("demo", tmp_path / "nowhere", code=1)

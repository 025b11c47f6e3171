"""``arc-halo demo``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arc_halo.cli.demo import application as demo
from arc_halo.cli.output import size
from tests.fixtures.models import bert, unknown, write_folder

if TYPE_CHECKING:
    from tests.cli.command_line import CommandLine

STEPS = (
    "A database", "A model", "architecture", "parameters", "SQL", "tokens", "comes out", "second version", "moved",
    "Eight bits", "Loaded twice", "family", "Verified",
)  # fmt: skip


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo leaves its picture."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_the_demo_runs_twice_and_leaves_other_models_alone(stored: CommandLine, bert_folder: Path):
    first, second = (stored.says("demo", bert_folder) for _ in range(2))
    assert [line.split("  ")[0] for line in first.splitlines() if re.match("[0-9]+  ", line)] == [
        str(number + 1) for number in range(len(STEPS))
    ]
    assert all(step in first for step in STEPS)
    assert "DIFFERENT" not in first + second
    assert "king is near " in first
    assert "were here already and are not stored again" in second
    versions = [(each["name"], each["version"]) for each in stored.json("model", "list")]
    assert sorted(versions) == [("demo-bert", each) for each in ("1", "2", "2-int8", "3", "4", "4-int8")] + [("m", "1")]


def test_the_upper_half_of_the_blocks_moves(arc_halo: CommandLine, bert_folder: Path):
    arc_halo.run("demo", bert_folder)
    differences = arc_halo.json("model", "diff", "demo-bert@1", "demo-bert@2")["differences"]
    assert len(differences) == 6
    assert all(each["name"].startswith("encoder.layer.1.") for each in differences)


def test_what_moved_is_stored_as_differences(arc_halo: CommandLine, tmp_path: Path):
    said = arc_halo.says("demo", write_folder(bert(hidden=96, blocks=2), tmp_path / "bert"))
    changed = arc_halo.json("model", "diff", "demo-bert@1", "demo-bert@2")["differences"]
    own = arc_halo.json("model", "show", "demo-bert@2")["own_nbytes"]
    assert 0 < own < 0.75 * sum(each["nbytes"] for each in changed)
    assert f"it adds {size(own)} (" in said


def test_the_figures_are_those_of_the_commands(arc_halo: CommandLine, bert_folder: Path):
    said = arc_halo.says("demo", bert_folder)
    made = arc_halo.json("model", "family", "demo-bert")
    assert [(each["version"], each["kind"]) for each in made] == [
        ("1", None), ("2", "finetune"), ("2-int8", "quantize")
    ]  # fmt: skip
    assert (
        f"{1 - sum(each['added_nbytes'] for each in made) / sum(each['raw_nbytes'] for each in made):.0%} saved" in said
    )
    assert 0.999 < float(re.search(r"the worst cosine of a tensor is ([0-9.]+)", said)[1]) < 1
    assert "3 versions of demo-bert: sound" in said


def test_the_picture_stays_and_nothing_else(arc_halo: CommandLine, bert_folder: Path, temporary: Path):
    said = arc_halo.says("demo", bert_folder)
    (picture,) = (each for each in temporary.rglob("*") if each.is_file())
    assert f"heat map of all: {picture}" in said
    assert "block 1, attention" in picture.read_text()


def test_the_export_stays_where_it_is_wanted(arc_halo: CommandLine, bert_folder: Path, temporary: Path):
    output = temporary.parent / "output"
    arc_halo.run("demo", bert_folder, "--output", output)
    for path in bert_folder.iterdir():
        assert (output / "exported" / path.name).read_bytes() == path.read_bytes()
    assert (output / "moved.html").is_file()
    assert list(temporary.iterdir()) == []


def test_the_demo_of_a_model_without_tokens_and_attention(arc_halo: CommandLine, tmp_path: Path):
    said = arc_halo.says("demo", write_folder(unknown(), tmp_path / "unknown"))
    assert "no searchable token embeddings" in said
    assert "2 tensors differ, 3 are equal" in said
    assert "has no matrices of floats in attention" in said
    assert "2 versions of demo-unknown: sound" in said


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


@pytest.mark.parametrize(("step", "versions"), [("perturb", ["1"]), ("compare", ["1", "2"])])
def test_an_interrupt_tells_what_is_there_and_how_it_goes(
    arc_halo: CommandLine, bert_folder: Path, monkeypatch: pytest.MonkeyPatch, step: str, versions: list[str]
):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"arc_halo.cli.demo.application.{step}", interrupt)
    said = arc_halo.run("demo", bert_folder, code=130).stderr
    assert said.startswith("interrupted; demo-bert@1")
    assert [each["version"] for each in arc_halo.json("model", "list")] == versions
    for command in said.strip().partition("to delete: ")[2].split(" && "):
        arc_halo.run(*command.split()[1:], "--yes")
    assert arc_halo.json("model", "list") == []

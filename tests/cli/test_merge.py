"""``arc-halo merge``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fixtures.models import bert, write_folder

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.command_line import CommandLine

RECIPE = """
merge_method: dare_linear
base_model: m@1
models:
  - model: near
parameters:
  weight: [0, 1]
  density: 0.5
"""
QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.fixture
def recipe(stored: CommandLine, tmp_path: Path) -> Path:
    """With a second model ``near@1``."""
    stored.run("model", "import", write_folder(bert(), tmp_path / "near", arrays=bert().arrays(1)), "--name", "near")
    path = tmp_path / "recipe.yml"
    path.write_text(RECIPE)
    return path


def test_merge_says_what_was_made(stored: CommandLine, recipe: Path):
    said = stored.says("merge", recipe, "merged", "--version", "first")
    assert said.splitlines()[0] == "merged@first"
    assert "tensors merged by dare_linear, 1 the base's" in said
    assert "made from m@1, near@1, which stay" in said


def test_merge_tells_programs_everything(stored: CommandLine, recipe: Path):
    told = [stored.json("merge", recipe, "merged", "--seed", seed) for seed in (3, 3, 4)]
    assert [each["version"] for each in told] == ["1", "2", "3"]
    assert told[0]["weights_digest"] == told[1]["weights_digest"] != told[2]["weights_digest"]
    assert (told[0]["kind"], told[0]["parents"]) == ("merge", ["m@1", "near@1"])
    assert (told[0]["recipe"]["seed"], told[0]["recipe"]["method"]) == (3, "dare_linear")


def test_a_dry_run_stores_nothing(stored: CommandLine, recipe: Path):
    said = stored.says("merge", recipe, "merged", "--dry-run")
    assert "by dare_linear, and share 1 with m@1" in said
    assert "models: near@1, m@1" in said
    told = stored.json("merge", recipe, "merged", "--dry-run")
    (query,) = [each for each in told["tensors"] if each["name"] == QUERY]
    assert query["own"] == {"near@1": {"weight": 1.0, "density": 0.5}}
    assert query["shared"] == {"lambda": 1.0, "normalize": False, "rescale": True}
    assert told["read_nbytes"] == 4 * told["nbytes"]  # two models, twice
    assert [each["name"] for each in stored.json("model", "list")] == ["m", "near"]


def test_errors_say_where(stored: CommandLine, recipe: Path):
    recipe.write_text(RECIPE.replace("density", "densty"))
    for options in ((), ("--dry-run",)):
        assert "recipe.yml, line 8, parameters.densty: dare_linear has no" in stored.error(
            "merge", recipe, "merged", *options
        )
    recipe.write_text(RECIPE.replace("model: near", "model: far"))
    assert "no model 'far'" in stored.error("merge", recipe, "merged")
    recipe.write_text(RECIPE)
    assert "has a version '1'" in stored.error("merge", recipe, "near", "--version", "1", "--dry-run")
    stored.run("merge", recipe.with_name("nothing.yml"), "merged", code=2)


def test_help_teaches_a_recipe(stored: CommandLine):
    said = stored.says("merge", "--help")
    assert "merge_method: ties" in said
    assert "weight: [0.2, 0.8]" in said

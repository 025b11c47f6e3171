"""``arc-halo model quantize``, ``dequantize`` and ``prune``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.fixtures.models import bert, unknown, write_folder

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.command_line import CommandLine

QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize("scheme", ["int8", "fp8", "nf4"])
def test_quantize_lists_the_worst_first(stored: CommandLine, scheme):
    said = stored.says("model", "quantize", "m", "--scheme", scheme, "--version", "q", "--lines", "3").splitlines()
    assert said[0] == "m@q"
    (header,) = [index for index, line in enumerate(said) if line.startswith("tensor ")]
    relative = [float(line.split()[3]) for line in said[header + 1 : header + 4]]
    assert relative == sorted(relative, reverse=True)
    assert said[header + 4 :] == [
        "and 9 tensors that moved less; --lines 0 lists all", "made from m@1, which stays"
    ]  # fmt: skip


def test_show_says_what_codes_stand_for(stored: CommandLine):
    stored.run("model", "quantize", "m", "--scheme", "nf4")
    said = " ".join(stored.says("model", "show", "m@2").split())
    assert "codes of 12 tensors stand for 6,144 numbers, counted above as 3,072 parameters, the bytes they fill" in said
    before, after = (stored.json("model", "show", f"m@{version}") for version in (1, 2))
    told = after["quantization"]
    assert told["scheme"] == "nf4"
    assert before["parameter_count"] - after["parameter_count"] == told["element_count"] - told["code_element_count"]
    stored.run("model", "quantize", "m@1", "--version", "whole")
    assert "int8 codes of 12 tensors stand for 6,144 numbers\n" in stored.says("model", "show", "m@whole")
    assert stored.json("model", "show", "m@1")["quantization"] is None


def test_quantize_tells_programs_everything(stored: CommandLine):
    told = stored.json("model", "quantize", "m", "--name", "small")
    assert (told["name"], told["kind"], told["parent"]) == ("small", "quantize", "m@1")
    assert len(told["tensors"]) == 12
    assert told["tensors"][QUERY].keys() == {"nbytes_before", "nbytes_after", "max_abs", "rms", "cosine", "relative"}
    assert told["recipe"]["scheme"] == "int8"


def test_patterns_may_be_repeated(stored: CommandLine):
    options = ("--include", "*query*", "--include", "*key*", "--exclude", "*.0.*")
    told = stored.json("model", "quantize", "m", *options)
    assert set(told["tensors"]) == {QUERY, QUERY.replace("query", "key")}
    assert (told["recipe"]["include"], told["recipe"]["exclude"]) == (["*query*", "*key*"], ["*.0.*"])


def test_dequantize_and_quantize_again(stored: CommandLine):
    digest = stored.json("model", "quantize", "m")["weights_digest"]
    restored = stored.json("model", "dequantize", "m@2", "--dtype", "F32")
    assert (restored["version"], restored["kind"], restored["parent"]) == ("3", "copy", "m@2")
    assert stored.json("model", "quantize", "m@3")["weights_digest"] == digest
    assert "made from m@2, which stays" in stored.says("model", "dequantize", "m@2")


def test_prune(stored: CommandLine, tmp_path: Path):
    said = stored.says("model", "prune", "m", "--sparsity", "0.5", "--lines", "0")
    assert said.count("50.0%") == 12
    stored.run("model", "export", "m@2", tmp_path)
    assert np.count_nonzero(load_file(tmp_path / "model.safetensors")[QUERY]) == 128


def test_prune_heads(stored: CommandLine):
    assert "2 heads of 2 layers pruned" in stored.says(
        "model", "prune", "m", "--sparsity", "0.25", "--structured", "heads"
    )
    told = stored.json("model", "prune", "m@1", "--sparsity", "0.25", "--structured", "heads", "--scope", "model")
    assert sum(map(len, told["recipe"]["heads"].values())) == 2


def test_prune_by_a_pattern(stored: CommandLine):
    told = stored.json("model", "prune", "m", "--pattern", "2:4")
    assert {each["zero_fraction"] for each in told["tensors"].values()} == {0.5}


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["quantize", "m@2"], 1, "no model 'm@2'"),
        (["quantize", "m", "--scheme", "int3"], 2, ""),
        (["quantize", "m", "--include", "nothing"], 1, "no tensor 'nothing'"),
        (["quantize", "m", "--plot", "errors.svg"], 2, ""),
        (["quantize", "m", "--plot", "nowhere/errors.html"], 2, ""),
        (["dequantize", "m"], 1, "was not quantised by arc-halo"),
        (["prune", "m"], 1, "give a sparsity"),
        (["prune", "m", "--sparsity", "1.5"], 1, "between 0 and 1"),
        (["prune", "m", "--pattern", "4:2"], 1, "write one as 2:4"),
        (["prune", "m", "--pattern", "heads"], 1, "write one as 2:4"),
        (["prune", "m", "--pattern", "2:4", "--sparsity", "0.5"], 1, "leave yours out"),
        (["prune", "m", "--pattern", "2:4", "--structured", "rows"], 1, "give one of the two"),
    ],
    ids=str,
)
def test_what_cannot_be(stored: CommandLine, options, code, told):
    result = stored.run("model", *options, code=code)
    assert told in result.stderr
    assert len(stored.json("model", "list")) == 1


def test_what_is_not_finite_is_named(arc_halo: CommandLine, tmp_path: Path):
    arrays = bert().arrays()
    arrays[QUERY][0, 0] = np.nan
    arc_halo.run("model", "import", write_folder(bert(), tmp_path / "nan", arrays=arrays), "--name", "m")
    assert f"left as they are, for NaN or infinity: {QUERY}" in arc_halo.says("model", "quantize", "m")


@pytest.mark.parametrize("command", [["quantize", "m"], ["prune", "m", "--sparsity", "0.5"]], ids=str)
@pytest.mark.parametrize("ending", ["html", "png"])
def test_errors_are_drawn(stored: CommandLine, tmp_path: Path, command, ending):
    path = tmp_path / f"errors.{ending}"
    told = stored.json("model", *command, "--plot", path)
    if ending == "html":
        page = path.read_text(encoding="utf-8")
        assert "m@1 → m@2" in page
        assert f"{told['tensors'][QUERY]['relative']:.0e}".replace("e-0", "e-") in page
    else:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_network_of_convolutions_needs_a_pattern(arc_halo: CommandLine, tmp_path: Path):
    arc_halo.run("model", "import", write_folder(unknown(), tmp_path / "unknown"), "--name", "m")
    assert "name tensors by a pattern to include" in arc_halo.error("model", "quantize", "m")
    assert "stages.0.conv.weight" in arc_halo.json("model", "quantize", "m", "--include", "*")["tensors"]


def test_the_two_prunes_name_each_other(stored: CommandLine):
    assert "arc-halo model prune" in stored.says("prune", "--help")
    assert "arc-halo prune" in stored.says("model", "prune", "--help")

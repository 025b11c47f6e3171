"""The family that is measured can be made: two checkpoints, one step apart."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_checkpoints_move_by_a_step_and_bring_what_adam_knows(tmp_path):
    command = [
        sys.executable,
        BENCHMARKS / "make_family.py",
        "--folder",
        tmp_path,
        "--checkpoints",
        "2",
        "--steps",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after, half = (
        load_file(tmp_path / precision / number / "model.safetensors")
        for precision, number in (("F32", "0"), ("F32", "1"), ("BF16", "1"))
    )
    name = "encoder.layer.0.attention.self.query.weight"
    moved = (after[name] - before[name]).abs().numpy()
    assert 0 < np.median(moved) < 1e-3
    assert str(half[name].dtype) == "torch.bfloat16"
    assert f"exp_avg_sq.{name}" in load_file(tmp_path / "adam" / "1.safetensors")
    assert (tmp_path / "family.json").exists()

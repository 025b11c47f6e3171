"""The script that trained the demo model runs and writes a model that can be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from arc_halo.registry import find_similar_tokens, import_model

SCRIPT = Path(__file__).parents[2] / "examples" / "train_demo_model.py"


@pytest.mark.timeout(600)
def test_two_steps_of_training(session, tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "model"), "--steps", "2"]
    subprocess.run(command, capture_output=True, check=True)
    model = import_model(session, tmp_path / "model", name="demo")
    assert model.model_type == "llama"
    assert 1_000_000 < model.parameter_count < 2_000_000
    assert len(find_similar_tokens(session, model, "list", 5)) == 5

"""The long form: atheris at work on each parser for a while."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.long import how_many
from tests.fuzz.outcome import NAMES

ROOT = Path(__file__).parents[2]

seconds = how_many("--seconds", short=5)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", NAMES)
def test_a_fuzzer_finds_nothing_but_typed_errors(name, seconds, tmp_path):
    command = [sys.executable, "-m", "tests.fuzz.run", name, "--seconds", str(seconds), "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stderr[-4000:]

"""atheris at work on each parser, for seconds or for longer; left out by name where it is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.long import how_many
from tests.fuzz.outcome import NAMES

ROOT = Path(__file__).parents[2]

seconds = how_many("--seconds", short=4)


def fuzz(name, seconds, seed, work):
    command = [sys.executable, "-m", "tests.fuzz.run", name, "--seconds", seconds, "--seed", seed, "--work", work]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("name", NAMES)
def test_a_fuzzer_finds_nothing_in_some_seconds(name, seconds, tmp_path):
    fuzz(name, seconds, 1, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", NAMES)
def test_a_fuzzer_finds_nothing_but_typed_errors(name, seconds, tmp_path):
    fuzz(name, seconds, 0, tmp_path)

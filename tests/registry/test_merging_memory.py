from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from arc_halo.merging import METHODS
from arc_halo.registry import import_model
from tests.registry.test_memory import write_trained

ALLOWED_MEBIBYTES = 128
ROOT = Path(__file__).parents[2]
RECIPE = """
merge_method: {method}
base_model: base
models:
  - {{model: base}}
  - {{model: other}}
parameters: {{{said}}}
"""
SETTINGS = {
    "linear": "weight: 1",
    "slerp": "t: 0.5",
    "task_arithmetic": "weight: 1",
    "ties": "weight: 1, density: 0.3, rescale: true",
    "dare_linear": "weight: 1, density: 0.3",
    "dare_ties": "weight: 1, density: 0.3",
    "breadcrumbs": "weight: 1, density: 0.9, gamma: 0.01",
    "breadcrumbs_ties": "weight: 1, density: 0.9, gamma: 0.01",
}
DIFFERENT = ("slerp", "ties", "dare_ties")
"""Each reads in its own way: norms first, ranks first, and with masks."""


def write_model(path, shapes, seed):
    """Weights of BF16, tensor by tensor: larger than memory would hold twice."""
    from safetensors.numpy import save_file  # noqa: PLC0415

    if sum(np.prod(each) for each in shapes) < 1 << 26:
        write_trained(path, shapes, seed)
        return
    rng = np.random.default_rng(7)
    arrays = {}
    for index, shape in enumerate(shapes):
        bits = rng.integers(0x3B00, 0x3D00, shape, np.uint16)
        bits ^= np.uint16(seed) & rng.integers(0, 8, shape, np.uint16)
        arrays[f"t{index}"] = bits.view(ml_dtypes.bfloat16)
    save_file(arrays, path)


def merged_memory(database, url, folder, shapes, methods):
    """What merging two models of such tensors took above what the process had before, in MiB, by method."""
    for seed, name in enumerate(("base", "other")):
        path = folder / f"{name}.safetensors"
        write_model(path, shapes, seed)
        database.transaction(lambda session, path=path, name=name: import_model(session, path, name=name).id)
        path.unlink()
    found = {}
    for method in methods:
        recipe = folder / f"{method}.yml"
        recipe.write_text(RECIPE.format(method=method, said=SETTINGS[method]))
        command = [sys.executable, "-m", "tests.fixtures.merge_process", url.render_as_string(hide_password=False)]
        done = subprocess.run(
            [*command, recipe, method], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        before, after = map(float, done.stdout.split())
        found[method] = after - before
    print(found)  # noqa: T201  the figures, with pytest -s
    return found


@pytest.mark.parametrize("shapes", [[(4096, 1024)] * 8, [(1, 32 << 20)]], ids=["many", "one row"])
def test_merging_needs_as_much_for_a_small_model(database, migrated_url, tmp_path, shapes):
    found = merged_memory(database, migrated_url, tmp_path, shapes, DIFFERENT)
    assert max(found.values()) <= ALLOWED_MEBIBYTES


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_merging_needs_as_much_for_a_large_one(database, migrated_url, tmp_path):
    found = merged_memory(database, migrated_url, tmp_path, [(16 * 1024, 1024)] * 24 + [(1, 128 << 20)], METHODS)
    assert {method for method, mebibytes in found.items() if mebibytes > ALLOWED_MEBIBYTES} == set()


def test_no_method_is_forgotten():
    assert SETTINGS.keys() == METHODS.keys()

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
POLICIES = ("none", "fast", "balanced", "dense")
PEERS = {"naive bytea", "naive bytea, binary cursor", "raw COPY", "large objects", "safetensors file"}


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """A file with a section for results."""
    path = tmp_path_factory.mktemp("docs") / "benchmarks.md"
    path.write_text("before\n<!-- results: begin -->\nold\n<!-- results: end -->\nafter\n")
    return path


@pytest.fixture(scope="module")
def results(document):
    command = [sys.executable, BENCHMARKS / "tensors.py", "--size", "tiny", "--models", "2", "--json"]
    done = subprocess.run([*command, "--write", document], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def of(results, store, precision):
    (found,) = (each for each in results["measured"] if (each["store"], each["precision"]) == (store, precision))
    return found


@pytest.mark.parametrize("precision", ["F32", "BF16"])
def test_every_store_is_measured_at_every_precision(results, precision):
    stores = {each["store"] for each in results["measured"] if each["precision"] == precision}
    assert stores == PEERS | {f"arc-halo {policy}" for policy in POLICIES}


def test_every_model_is_one_measurement(results):
    for each in results["measured"]:
        assert len(each["loaded_seconds"]) == 2
        assert len(each["saved_seconds"]) == (0 if "cursor" in each["store"] else 2)
        assert len(each["again_seconds"]) == (2 if "arc-halo" in each["store"] else 0)


@pytest.mark.parametrize("store", ["naive bytea", "raw COPY", "large objects", "arc-halo none"])
def test_stores_that_do_not_compress_take_every_byte(results, store):
    each = of(results, store, "F32")
    assert each["stored_nbytes"] >= each["payload_nbytes"] == 2 * each["model_nbytes"]


def test_denser_policies_take_fewer_bytes(results):
    none, fast, dense = (of(results, f"arc-halo {p}", "BF16")["payload_nbytes"] for p in ("none", "fast", "dense"))
    assert dense < fast < none


def test_a_slice_reads_at_most_two_chunks(results):
    assert {each["store"] for each in results["slices"]} == {f"arc-halo {policy}" for policy in POLICIES}
    assert all(1 <= each["chunk_count"] <= 2 for each in results["slices"])


def test_memory_goals_are_met(results):
    assert all(goal["met"] for goal in results["goals"] if "MiB" in goal["aim"])


def test_results_replace_those_of_the_document(results, document):
    lines = document.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    assert any(results["machine"]["processor"] in line for line in lines)

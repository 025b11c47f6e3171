"""One run of the smallest size: what it says is checked in one test, for a second one would run it again."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OURS = {f"Arc-Halo {policy}" for policy in ("none", "fast", "balanced", "dense")}
READERS = {"naive bytea, binary cursor"}
PEERS = {"naive bytea", "raw COPY", "large objects", "safetensors file"}
MODELS = 2


def test_every_store_is_measured_and_what_they_take_is_right(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results: begin -->\nold\n<!-- results: end -->\nafter\n")
    command = [sys.executable, BENCHMARKS / "tensors.py", "--size", "tiny", "--models", str(MODELS), "--json"]
    done = subprocess.run([*command, "--write", page], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    for precision in ("F32", "BF16"):
        measured = {each["store"]: each for each in results["measured"] if each["precision"] == precision}
        assert measured.keys() == OURS | READERS | PEERS
        check_counts(measured)
        check_bytes(measured)
    check_goals(results)
    check_page(page, results)


def check_counts(measured):
    for name, each in measured.items():
        assert len(each["loaded_seconds"]) == MODELS
        assert len(each["saved_seconds"]) == (0 if name in READERS else MODELS)
        assert len(each["again_seconds"]) == (MODELS if name in OURS else 0)


def check_bytes(measured):
    for name in ("raw COPY", "large objects", "Arc-Halo none"):
        assert measured[name]["payload_nbytes"] == MODELS * measured[name]["model_nbytes"]
    for name in OURS | PEERS:
        assert measured[name]["stored_nbytes"] >= measured[name]["payload_nbytes"]
    payloads = [measured[f"Arc-Halo {policy}"]["payload_nbytes"] for policy in ("dense", "balanced", "fast", "none")]
    assert payloads == sorted(payloads)


def check_goals(results):
    assert {each["store"] for each in results["slices"]} == OURS
    assert all(1 <= each["chunk_count"] <= 2 for each in results["slices"])
    assert all(goal["met"] for goal in results["goals"] if "MiB" in goal["aim"])


def check_page(page, results):
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    assert all(any(goal["aim"] in line for line in lines) for goal in results["goals"])

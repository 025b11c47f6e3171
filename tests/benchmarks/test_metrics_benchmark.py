"""One run of the smallest size; beside MLflow where that is installed."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HAS_PEER = find_spec("mlflow") is not None


def test_every_figure_is_measured(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- metrics: begin -->\nold\n<!-- metrics: end -->\nafter\n")
    command = [sys.executable, BENCHMARKS / "metrics.py", "--size", "tiny", "--json", "--write", page]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results["tasks"]) == 9
    for task in results["tasks"]:
        assert min(task["ours"]) > 0
        assert len(task["theirs"]) == (len(task["ours"]) if HAS_PEER else 0)
    recorded = results["recorded"]
    assert len(recorded["call_seconds"]) * 5 == recorded["points"] * len(recorded["stored_seconds"])
    ways = {"Arc-Halo, sealed as runs are", "Arc-Halo, not sealed"} | ({"MLflow"} if HAS_PEER else set())
    assert {(each["way"], each["kind"]) for each in results["deletions"]} == {
        (way, kind) for way in ways for kind in ("small", "whole")
    }
    assert all(each["peak_mib"] > 10 for each in results["deletions"])
    written = page.read_text()
    assert "old" not in written
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert all(goal["aim"] in written for goal in results["goals"])
    assert [path.name for path in tmp_path.iterdir()] == [page.name]

"""One run of the smallest size. Needs the extra `transformers`."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_figure_is_measured(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- fusion: begin -->\nprevious results\n<!-- fusion: end -->\nafter\n")
    command = [sys.executable, BENCHMARKS / "fusion.py", "--size", "tiny", "--json", "--write", page]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    names = set(results["size"]["shapes"])
    assert {loss["who"] for loss in results["losses"]} > names
    assert all(loss["nats"] > 0 for loss in results["losses"])
    for each in (*results["pools"], *results["cascades"]):
        assert each["interval"]["low"] <= each["interval"]["mean"] <= each["interval"]["high"]
    assert len(results["cascade"]["thresholds"]) == len(names) - 1
    assert len(results["bookkeeping"]["seconds"]) == results["size"]["operations"]
    assert results["bookkeeping"]["lost_rows"] == 0
    written = page.read_text()
    assert "previous results" not in written
    assert all(goal["aim"] in written for goal in results["goals"])

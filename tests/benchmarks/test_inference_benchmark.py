"""One run of the smallest size; beside Redis where that is installed. Needs the extra `transformers`."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HAS_REDIS = shutil.which("redis-server") is not None and find_spec("redis") is not None


def test_every_figure_is_measured(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- inference: begin -->\nprevious results\n<!-- inference: end -->\nafter\n")
    command = [sys.executable, BENCHMARKS / "inference.py", "--size", "tiny", "--json", "--write", page]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    prefix = results["size"]["prefix_tokens"]
    assert [each["hit_tokens"] for each in results["first_tokens"]] == [prefix] * 8
    for each in results["first_tokens"]:
        assert min(each["warm_seconds"]) > 0
    assert all("break-even" in each for each in results["break_even"])
    assert len(results["restores"]) == (4 if HAS_REDIS else 3)
    assert results["lookups"]["statements"] == 1
    assert len(results["lookups"]["seconds"]) == results["size"]["lookups"]
    assert all(each["way"] in ("read", "recompute") for each in results["analyses"])
    assert results["rounding"]["mean_nats"] > 0
    written = page.read_text()
    assert "previous results" not in written
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert all(goal["aim"] in written for goal in results["goals"])

"""One run of the smallest size; beside other libraries where those are installed."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PEERS = ("alembic_utils", "sqlalchemy_declarative_extensions", "alembic_pg_autogen")


def test_every_figure_is_measured(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- autogenerate: begin -->\nold\n<!-- autogenerate: end -->\nafter\n")
    command = [sys.executable, BENCHMARKS / "autogenerate.py", "--size", "tiny", "--json", "--write", page]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert list(results["ways"]) == ["from nothing", "tables standing"]
    for libraries in results["ways"].values():
        assert set(libraries["Arc-Halo"].values()) == {"yes"}
        assert len(libraries) == 1 + sum(find_spec(each) is not None for each in PEERS)
    assert min(*results["ours_seconds"], *results["plain_seconds"]) > 0
    written = page.read_text()
    assert "old" not in written
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert all(goal["aim"] in written for goal in results["goals"])

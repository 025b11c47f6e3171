"""One run of the smallest size; peers that are not installed are named as such."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OURS = {"Arc-Halo, deltas of depth 2", "Arc-Halo, mapped from the read cache", "safetensors file"}
PEERS = {"tensorstore (OCDBT, zarr3, zstd)": "tensorstore", "MLflow artifact download": "mlflow"}


def test_every_way_loads_the_same(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- loading: begin -->\nold\n<!-- loading: end -->\nafter\n")
    command = [sys.executable, BENCHMARKS / "loading.py", "--size", "tiny", "--json", "--write", page]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)["measured"]
    for precision in ("F32", "BF16"):
        seconds = {each["way"]: each["seconds"] for each in measured if each["precision"] == precision}
        assert seconds.keys() == OURS | PEERS.keys()
        assert all(len(seconds[way]) == 2 for way in OURS)
        assert {way: seconds[way] is not None for way in PEERS} == {
            w: find_spec(m) is not None for w, m in PEERS.items()
        }
    assert "MLflow artifact download" in page.read_text()

"""One run of the smallest size; peers that are not installed are named as such."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OURS = {
    "Arc-Halo `balanced`, deltas of depth 2", "Arc-Halo `fast`, deltas of depth 1",
    "Arc-Halo `fast`, depth 1, payloads in a folder",
    "Arc-Halo, mapped from the read cache", "Arc-Halo, from the read cache into memory",
}  # fmt: skip
PEERS = {"tensorstore (OCDBT, zarr3, zstd)": "tensorstore", "MLflow artifact download": "mlflow"}
REPEATS = 2


def test_every_way_loads_the_same(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- loading: begin -->\nold\n<!-- loading: end -->\nafter\n")
    command = [sys.executable, BENCHMARKS / "loading.py", "--size", "tiny", "--json", "--write", page]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    for precision in ("F32", "BF16"):
        loads = {each["way"]: len(each["seconds"]) for each in results["measured"] if each["precision"] == precision}
        installed = {peer: REPEATS if find_spec(package) else 0 for peer, package in PEERS.items()}
        assert loads == dict.fromkeys(OURS | {"safetensors file into memory"}, REPEATS) | installed
    check_page(page.read_text(), results)
    assert [path.name for path in tmp_path.iterdir()] == [page.name]


def check_page(written, results):
    assert written.startswith("before\n<!-- loading: begin -->\n")
    assert written.endswith("<!-- loading: end -->\nafter\n")
    assert "old" not in written.splitlines()
    assert all(goal["aim"] in written for goal in results["goals"])
    for peer, package in PEERS.items():
        assert (f"{peer} | not installed" in written) == (find_spec(package) is None)

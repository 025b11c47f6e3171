"""One run of the smallest size, synthetic and without torch."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WAYS = {
    "safetensors files", "zstd -3 of the files", "content-defined chunks, LZ4", "BitX", "Arc-Halo balanced",
    "Arc-Halo dense",
}  # fmt: skip


def test_every_way_is_measured(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- families: begin -->\nold\n<!-- families: end -->\nafter\n")
    command = [sys.executable, BENCHMARKS / "families.py", "--size", "tiny", "--json", "--write", page]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    for what in ("F32", "BF16", "Adam state"):
        stored = {each["way"]: each for each in results["stored"] if each["what"] == what}
        assert stored.keys() == WAYS
        assert len({each["raw_nbytes"] for each in stored.values()}) == 1
        assert (
            stored["Arc-Halo dense"]["payload_nbytes"]
            < stored["BitX"]["nbytes"]
            < stored["safetensors files"]["nbytes"]
        )
    assert {each["depth"] for each in results["loaded"]} == {0, 1, 2}
    assert "| BF16 | dense | 2 |" in page.read_text()

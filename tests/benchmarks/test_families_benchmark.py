"""One run of the smallest size, synthetic and without torch."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WAYS = {
    "safetensors files", "zstd -3 of the files", "content-defined chunks, LZ4", "BitX", "Arc-Halo balanced",
    "Arc-Halo fast", "Arc-Halo dense",
}  # fmt: skip


DELTAS = {
    "differences by pcodec (`balanced`, 32 bits and more)", "differences packed in pairs (`balanced`, up to 16 bits)",
    "differences by exponent, pcodec (`dense`)",
}  # fmt: skip


def test_every_way_is_measured(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- families: begin -->\nold\n<!-- families: end -->\nafter\n")
    command = [sys.executable, BENCHMARKS / "families.py", "--size", "tiny", "--json", "--write", page]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    for what in ("F32", "BF16", "Adam state"):
        check_sizes({each["way"]: each for each in results["stored"] if each["what"] == what})
    assert {each["depth"] for each in results["loaded"]} == {0, 1, 2}
    for speeds in results["speeds"].values():
        ratios = {name: ratio for name, ratio, _, _ in speeds}
        assert all(ratios[name] < ratios["BitX"] for name in DELTAS)
    written = page.read_text()
    assert "| BF16 | dense | 2 |" in written
    assert all(goal["aim"] in written for goal in results["goals"])
    assert [path.name for path in tmp_path.iterdir()] == [page.name]


def check_sizes(stored):
    assert stored.keys() == WAYS
    assert len({each["raw_nbytes"] for each in stored.values()}) == 1
    assert all(0 < each["first_nbytes"] < each["payload_nbytes"] <= each["nbytes"] for each in stored.values())
    payloads = [
        stored[way]["payload_nbytes"] for way in ("Arc-Halo dense", "Arc-Halo balanced", "BitX", "safetensors files")
    ]
    assert payloads == sorted(payloads)

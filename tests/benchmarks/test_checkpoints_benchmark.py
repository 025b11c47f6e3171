"""One run of the smallest size, synthetic and without torch."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WAYS = {
    "safetensors files", "zstd -3 of the files", "BitX", "Arc-Halo fast", "Arc-Halo balanced", "Arc-Halo dense",
}  # fmt: skip
SERIES = {"full fine-tune", "LoRA fine-tune", "full fine-tune, weights in bf16 alone"}


def test_every_series_is_saved_in_every_way(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- checkpoints: begin -->\nold\n<!-- checkpoints: end -->\nafter\n")
    command = [sys.executable, BENCHMARKS / "checkpoints.py", "--size", "tiny", "--json", "--write", page]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert {(each["series"], each["way"]) for each in results["saved"]} == {(s, w) for s in SERIES for w in WAYS}
    assert all(min(each["nbytes"]) > 0 for each in results["saved"])
    for each in results["saved"]:
        if "LoRA" in each["series"]:
            assert each["nbytes"][1] < 0.05 * each["nbytes"][0]
    written = page.read_text()
    assert all(goal["aim"] in written for goal in results["goals"])
    assert [path.name for path in tmp_path.iterdir()] == [page.name]

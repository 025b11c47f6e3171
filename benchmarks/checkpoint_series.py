"""The runs whose checkpoints are stored: a full fine-tune and a LoRA fine-tune of one model, as states in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from models import tiny_model
from safetensors.numpy import load_file, save_file

from arc_halo.formats.safetensors import SafetensorsFile
from arc_halo.training.checkpoint import CheckpointState
from arc_halo.training.optimizer import OptimizerSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

STATES = ("exp_avg", "exp_avg_sq")
BF16 = "full fine-tune, weights in bf16 alone"
GROUP = {"lr": 3e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
STEPS = 20
_TINY_CHECKPOINTS = 3
_RANK = 2


@dataclass(frozen=True)
class Series:
    """The checkpoints of one run: what changes of the weights, and Adam's state, file by file in their order."""

    name: str
    config: Mapping[str, Any]
    start: Path
    weights: list[Path]
    adam: list[Path]

    def states(self) -> Iterator[tuple[int, CheckpointState]]:
        """Step and state of each checkpoint; of frozen weights all share the arrays."""
        frozen = load_arrays(self.start)
        for number, weights in enumerate(self.weights):
            step = (number + 1) * STEPS
            optimizer = _optimizer(load_file(self.adam[number]), step) if self.adam else None
            yield step, CheckpointState(weights=frozen | load_arrays(weights), optimizer=optimizer)

    def files(self, number: int) -> list[Path]:
        """What trainers write for a checkpoint, none twice; the first counts the model it starts from."""
        return [*([] if number else [self.start]), self.weights[number], *self.adam[number : number + 1]]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a safetensors file; numpy's own loader does not know bfloat16."""
    with SafetensorsFile(path) as file:
        arrays = {}
        for name, entry in file.tensors.items():
            raw = np.empty(entry.nbytes, np.uint8)
            file.read_into(entry, 0, raw.data)
            arrays[name] = entry.dtype.as_array(raw, entry.shape)
    return arrays


def _optimizer(tensors: Mapping[str, np.ndarray], step: int) -> OptimizerSnapshot:
    names = [name.removeprefix("exp_avg.") for name in tensors if name.startswith("exp_avg.")]
    return OptimizerSnapshot(
        {name: {"step": np.float32(step), **{each: tensors[f"{each}.{name}"] for each in STATES}} for name in names},
        [{**GROUP, "params": names}],
    )


def open_series(folder: Path | None, scratch: Path, *, tiny: bool) -> list[Series]:
    """The runs in a folder; where none is given they are trained now, by torch, or are tiny and synthetic."""
    if tiny:
        return _synthetic(scratch)
    if folder is None:
        if find_spec("torch") is None:
            raise SystemExit("the runs are made by torch: pip install -e '.[transformers]', or give --family FOLDER")
        folder = scratch / "family"
        for script in ("make_family.py", "make_lora.py"):
            subprocess.run([sys.executable, Path(__file__).with_name(script), "--folder", folder], check=True)
    start = folder / "F32" / "0"
    config = json.loads((start / "config.json").read_text())
    adam = _numbered(folder / "adam")
    full = [folder / "F32" / each.stem / "model.safetensors" for each in adam]
    halves = [folder / "BF16" / each.stem / "model.safetensors" for each in adam]
    return [
        Series("full fine-tune", config, start / "model.safetensors", full, adam),
        Series(BF16, config, folder / "BF16" / "0" / "model.safetensors", halves, []),
        Series(
            "LoRA fine-tune",
            config,
            start / "model.safetensors",
            _numbered(folder / "lora"),
            _numbered(folder / "lora-adam"),
        ),
    ]


def _numbered(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"), key=lambda path: int(path.stem))


def _synthetic(folder: Path) -> list[Series]:
    """A small model that drifts, and the same with narrow matrices beside it that do."""
    arrays, config, _ = tiny_model()
    random = np.random.default_rng(3)
    folder.mkdir(parents=True, exist_ok=True)
    start = folder / "full-0.safetensors"
    save_file(arrays, start)
    adapters = {f"{n}.lora_A": np.zeros((_RANK, a.shape[-1]), np.float32) for n, a in arrays.items() if a.ndim > 1}
    made = []
    for name, changed in (("full fine-tune", dict(arrays)), ("LoRA fine-tune", adapters)):
        weights, adam = [], []
        for number in range(1, _TINY_CHECKPOINTS + 1):
            for each, array in changed.items():
                changed[each] = array + random.standard_normal(array.shape, np.float32) * np.float32(3e-5)
            weights.append(folder / f"{name[:4]}-{number}.safetensors")
            adam.append(folder / f"{name[:4]}-adam-{number}.safetensors")
            save_file(changed, weights[-1])
            save_file({f"{s}.{n}": a * np.float32(1e-3) for n, a in changed.items() for s in STATES}, adam[-1])
        made.append(Series(name, config, start, weights, adam))
    halves = [folder / f"half-{number}.safetensors" for number in range(_TINY_CHECKPOINTS + 1)]
    for half, whole in zip(halves, [start, *made[0].weights], strict=True):
        save_file({n: a.astype(ml_dtypes.bfloat16) for n, a in load_file(whole).items()}, half)
    return [*made, Series(BF16, config, halves[0], halves[1:], [])]

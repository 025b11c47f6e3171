"""The family of models whose storage is measured: checkpoints of one run in two precisions, and Adam's state."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
from models import tiny_model
from safetensors.numpy import save_file

from arc_halo.formats.safetensors import SafetensorsFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arc_halo.dtypes import DType

PRECISIONS = ("F32", "BF16")
TINY_CHECKPOINTS = 3


@dataclass(frozen=True)
class Checkpoint:
    """A file of tensors; beside those of a model lies its config."""

    path: Path

    @property
    def nbytes(self) -> int:
        """Raw bytes of the tensors."""
        with SafetensorsFile(self.path) as file:
            return sum(entry.nbytes for entry in file.tensors.values())

    def tensors(self) -> Iterator[tuple[str, DType, bytes]]:
        """Name, type and raw bytes of each."""
        with SafetensorsFile(self.path) as file:
            for name, entry in file.tensors.items():
                raw = bytearray(entry.nbytes)
                file.read_into(entry, 0, memoryview(raw))
                yield name, entry.dtype, bytes(raw)


@dataclass(frozen=True)
class Family:
    """Checkpoints in their order."""

    origin: str
    models: dict[str, list[Checkpoint]]
    adam: list[Checkpoint]


def open_family(folder: Path | None, scratch: Path, *, tiny: bool) -> Family:
    """The family in a folder; where none is given one is made: by torch, or tiny and synthetic."""
    if tiny:
        return _synthetic(scratch)
    if folder is None:
        if find_spec("torch") is None:
            raise SystemExit("the family is made by torch: pip install -e '.[transformers]', or give --family FOLDER")
        folder = scratch / "family"
        subprocess.run([sys.executable, Path(__file__).with_name("make_family.py"), "--folder", folder], check=True)
    origin = json.loads((folder / "family.json").read_text())["origin"]
    return Family(origin, {each: _checkpoints(folder / each) for each in PRECISIONS}, _files(folder / "adam"))


def _checkpoints(folder: Path) -> list[Checkpoint]:
    numbers = sorted(int(each.name) for each in folder.iterdir())
    return [Checkpoint(folder / str(number) / "model.safetensors") for number in numbers]


def _files(folder: Path) -> list[Checkpoint]:
    return [Checkpoint(path) for path in sorted(folder.glob("*.safetensors"), key=lambda path: int(path.stem))]


def _synthetic(folder: Path) -> Family:
    """A small model that drifts; its optimizer state is noise that does, too."""
    arrays, config, origin = tiny_model()
    random = np.random.default_rng(3)
    models: dict[str, list[Checkpoint]] = {precision: [] for precision in PRECISIONS}
    adam = []
    for number in range(TINY_CHECKPOINTS):
        arrays = {n: a + random.standard_normal(a.shape, np.float32) * np.float32(3e-5) for n, a in arrays.items()}
        for precision in PRECISIONS:
            target = folder / precision / str(number)
            target.mkdir(parents=True)
            dtype = np.float32 if precision == "F32" else ml_dtypes.bfloat16
            save_file({n: a.astype(dtype) for n, a in arrays.items()}, target / "model.safetensors")
            (target / "config.json").write_text(json.dumps(config))
            models[precision].append(Checkpoint(target / "model.safetensors"))
        path = folder / f"adam-{number}.safetensors"
        save_file({f"exp_avg.{n}": a * np.float32(1e-3) for n, a in arrays.items()}, path)
        adam.append(Checkpoint(path))
    return Family(f"{origin} that drift", models, adam)

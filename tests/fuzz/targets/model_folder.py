"""The index and the config of a folder with two shards: the index, a zero byte, the config."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from arc_halo.formats.hf import open_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHARDS = {"model-00001-of-00002.safetensors": ("a", "b"), "model-00002-of-00002.safetensors": ("c",)}
WEIGHT_MAP = {tensor: shard for shard, tensors in SHARDS.items() for tensor in tensors}
TOKENS = (
    b'"weight_map"',
    b'"metadata"',
    b"../",
    b"\\u0000",
    b'"a"',
    b'"c"',
    *(f'"{name}"'.encode() for name in SHARDS),
)


def read(data: bytes, folder: Path) -> object:
    for shard, tensors in SHARDS.items():
        if not (folder / shard).exists():
            save_file({tensor: np.zeros(2, np.float32) for tensor in tensors}, folder / shard)
    index, _, config = data.partition(b"\0")
    (folder / "model.safetensors.index.json").write_bytes(index)
    (folder / "config.json").write_bytes(config)
    with open_model(folder) as model:
        found = {tensor: shard for shard, file in model.weights.items() for tensor in file.tensors}
        assert json.loads(index)["weight_map"] == found  # a shard that the index does not name is left out
        assert found.items() <= WEIGHT_MAP.items()
        assert model.config == json.loads(config, parse_constant=str)
        return model.files


def mend(data: bytes) -> bytes:
    return data


def seeds() -> Iterator[bytes]:
    yield json.dumps({"metadata": {"total_size": 24}, "weight_map": WEIGHT_MAP}).encode() + b'\0{"model_type": "bert"}'
    yield json.dumps({"weight_map": WEIGHT_MAP | {"c": "../x.safetensors"}}).encode() + b"\0{}"
    yield json.dumps({"weight_map": WEIGHT_MAP | {"d": "gone.safetensors"}}).encode() + b"\0{}"
    yield b"{}\0{}"

"""A safetensors file as it lies on a disk; what is accepted, the reference must read alike."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
from safetensors import deserialize
from safetensors.numpy import save

from arc_halo.dtypes import DTYPES
from arc_halo.formats.safetensors import SafetensorsFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKENS = (b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', *(f'"{name}"'.encode() for name in DTYPES))


def read(data: bytes, folder: Path) -> object:
    path = folder / "model.safetensors"
    path.write_bytes(data)
    found = {}
    with SafetensorsFile(path) as file:
        for entry in file.in_data_order():
            buffer = bytearray(entry.nbytes)
            file.read_into(entry, 0, buffer)
            found[entry.name] = (entry.dtype.name, list(entry.shape), bytes(buffer))
    assert found == {name: (view["dtype"], view["shape"], bytes(view["data"])) for name, view in deserialize(data)}
    return found


def mend(data: bytes) -> bytes:
    """The length of the header as it is: up to the last closing brace."""
    end = data.rfind(b"}") + 1
    return struct.pack("<Q", end - 8) + data[8:] if end > 8 else data


def seeds() -> Iterator[bytes]:
    yield save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((0, 4), np.int8)}, {"format": "pt"})
    yield save({"layer.weight": np.ones((), np.float64)})
    yield struct.pack("<Q", 2) + b"{}"
    yield struct.pack("<Q", 1 << 63) + b"{"
    yield b"PK\x03\x04" + bytes(30)

"""The header of a safetensors file by itself: two bytes of how much data follows, then its JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from arc_halo.dtypes import DTYPES
from arc_halo.formats.safetensors_header import LENGTH, build_header, parse_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKENS = (b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', *(f'"{name}"'.encode() for name in DTYPES))


def read(data: bytes, folder: Path) -> object:  # noqa: ARG001  # every target is given one
    data_nbytes, text = int.from_bytes(data[:2], "little"), data[2:]
    metadata, tensors = parse_header(LENGTH.pack(len(text)) + text, data_nbytes, "header")
    plain = json.loads(text)
    assert plain.pop("__metadata__", {}) == metadata
    assert plain == {
        entry.name: {"dtype": entry.dtype.name, "shape": list(entry.shape), "data_offsets": _span(entry, len(text))}
        for entry in tensors.values()
    }
    ordered = sorted(tensors.values(), key=lambda entry: (entry.offset, entry.nbytes))
    again = build_header([(entry.name, entry.dtype, entry.shape) for entry in ordered], metadata)
    assert parse_header(again, data_nbytes, "again")[0] == metadata
    return tensors


def _span(entry, text_nbytes):
    begin = entry.offset - LENGTH.size - text_nbytes
    return [begin, begin + entry.nbytes]


def mend(data: bytes) -> bytes:
    return data


def seeds() -> Iterator[bytes]:
    entries = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "F4", "shape": [4], "data_offsets": [24, 26]},
        "\u00e9\n"[:1]: {"dtype": "U8", "shape": [0], "data_offsets": [26, 26]},
    }
    yield b"\x1a\0" + json.dumps(entries | {"__metadata__": {"format": "pt", "k\u0000"[:1]: "\u20ac"}}).encode()
    yield b"\0\0{}"
    yield b'\0\0{ "__metadata__" : { } }'

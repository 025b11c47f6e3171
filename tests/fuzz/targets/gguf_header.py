"""The header of a GGUF file by itself: two bytes of how much data follows, then the header."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arc_halo.formats.gguf_header import gaps, parse_header, parse_stored
from arc_halo.formats.gguf_values import GGUFArray, array_values
from tests.fixtures.gguf import entry, file_bytes, tensor, u32, u64

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKENS = (b"GGUF", b"general.alignment", u32(3), u32(8), u32(9), u64(0), u64(1), u64(32), u64(2**40), u64(2**64 - 32))


def read(data: bytes, folder: Path) -> object:  # noqa: ARG001  # every target is given one
    data_nbytes, header = int.from_bytes(data[:2], "little"), data[2:]
    size = len(header) + data_nbytes
    whole = header + bytes(data_nbytes)
    parsed = parse_header(lambda offset, nbytes: whole[offset : offset + nbytes], size, "header")
    again = parse_stored(parsed.content, size, "stored")
    assert again.tensors == parsed.tensors
    assert again.metadata.keys() == parsed.metadata.keys()
    for value in parsed.metadata.values():
        if isinstance(value, GGUFArray):
            assert _count(array_values(parsed.content, value)) >= value.count
    filled = sum(each.nbytes for each in parsed.tensors.values()) + sum(nbytes for _, nbytes in gaps(parsed, size))
    assert parsed.end + filled == size
    return parsed


def _count(values: Iterator[object]) -> int:
    return sum(1 + (_count(each) if hasattr(each, "__next__") else 0) for each in values)


def mend(data: bytes) -> bytes:
    return data


def seeds() -> Iterator[bytes]:
    entries = [
        entry("general.architecture", "string", "llama"),
        entry("general.alignment", "uint32", 64),
        entry("a", [["uint16"]], [[1, 2], []]),
        entry("tokenizer.ggml.tokens", ["string"], ["a", "b"]),
        entry("b", ["bool"], [True, False]),
        entry("c", "float32", 1e-5),
    ]
    tensors = [tensor("q", [32, 2], 8, 0), tensor("a", [2], 0, 128)]
    yield (128 + 8).to_bytes(2, "little") + file_bytes(entries, tensors, alignment=64)
    yield b"\0\0" + file_bytes()
    yield b"\0\0" + file_bytes(counts=(2**63, 2**40))

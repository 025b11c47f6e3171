"""A GGUF file as it lies on a disk; what is accepted, the reference must read alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf import GGUFReader

from arc_halo.formats.gguf import GGUFFile
from arc_halo.formats.gguf_values import GGUFArray
from tests.fixtures.gguf import entry, file_bytes, padded, tensor, u32, u64

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKENS = (b"GGUF", b"general.alignment", u32(3), u32(8), u32(9), u64(0), u64(1), u64(32), u64(2**40), u64(2**64 - 32))


def read(data: bytes, folder: Path) -> object:
    path = folder / "model.gguf"
    path.write_bytes(data)
    found = {}
    with GGUFFile(path) as file:
        for each in file.in_data_order():
            buffer = bytearray(each.nbytes)
            file.read_into(each, 0, buffer)
            found[each.name] = (each.dtype.name, each.shape, bytes(buffer))
        if _is_for_the_reference(file):
            assert found == {
                each.name: (each.tensor_type.name, tuple(each.shape.tolist()[::-1]), each.data.tobytes())
                for each in GGUFReader(path).tensors
            }
    return found


def _is_for_the_reference(file: GGUFFile) -> bool:
    """It reads no scalars or empty files, nor arrays of arrays, and names of its own take the place of some keys."""
    simple = all(not isinstance(value, GGUFArray) or value.type_name != "array" for value in file.metadata.values())
    named = all(not key.startswith("GGUF.") for key in file.metadata)
    return simple and named and all(each.shape and each.nbytes for each in file.tensors.values())


def mend(data: bytes) -> bytes:
    return data


def seeds() -> Iterator[bytes]:
    entries = [entry("general.architecture", "string", "llama"), entry("a.tokens", ["string"], ["a", "b"])]
    tensors = [tensor("blk.0.attn_q.weight", [32, 2], 8, 0), tensor("a", [2], 0, 96), tensor("b", [3], 24, 128)]
    yield file_bytes(entries, tensors, data=padded(bytes(range(68))) + padded(bytes(8)) + b"\1\2\3")
    yield file_bytes(tensors=[tensor("a", [2], 0, 0)], data=bytes(8), version=2)
    yield file_bytes(version=1)
    yield b"\x80\x04\x95" + bytes(30)

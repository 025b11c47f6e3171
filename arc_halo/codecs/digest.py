"""Digests name content, checksums detect errors: what is hashed, and how it can never be taken for something else."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from blake3 import blake3

from arc_halo.errors import TensorError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from arc_halo.codecs.abc import BytesLike
    from arc_halo.dtypes import DType

DIGEST_NBYTES = 32

# BLAKE3's key derivation mode: each context is a hash function of its own, so a digest of one kind cannot be one of
# another whatever the input. Part of the stored format; a changed layout gets a new date.
_TENSOR_CONTEXT = "arc-halo 2026-11 tensor digest"
_MANIFEST_LEAF_CONTEXT = "arc-halo 2026-11 manifest leaf"
_MANIFEST_NODE_CONTEXT = "arc-halo 2026-11 manifest node"

_CHECKSUM = struct.Struct("<q")


def chunk_digest(raw: BytesLike) -> bytes:
    """The content address of a chunk: plain BLAKE3-256 of its raw bytes, 32 bytes long."""
    return blake3(raw).digest()


def payload_checksum(payload: BytesLike) -> int:
    """The checksum of stored bytes: the first eight bytes of their BLAKE3, as a little-endian signed integer.

    It detects errors before a decoder sees them; it is no address, and nobody is kept from forging it.
    """
    checksum: int
    (checksum,) = _CHECKSUM.unpack(blake3(payload).digest(length=_CHECKSUM.size))
    return checksum


class TensorHasher:
    """The digest of a tensor, from its bytes in order.

    Hashed under a context of its own: a header, then the raw bytes as safetensors stores them (little-endian, C
    order). The header is the length of the dtype's name (1 byte), the name in ASCII, the rank (4 bytes) and each
    dimension (8 bytes), unsigned little-endian: self-delimiting, so no two tensors share an input.
    """

    def __init__(self, dtype: DType, shape: Sequence[int]) -> None:
        self._hash = blake3(tensor_header(dtype, shape), derive_key_context=_TENSOR_CONTEXT)

    def update(self, raw: BytesLike) -> None:
        """Take the next bytes."""
        self._hash.update(raw)

    def digest(self) -> bytes:
        """The digest of what was taken so far, 32 bytes long."""
        return self._hash.digest()


def tensor_header(dtype: DType, shape: Sequence[int]) -> bytes:
    """The canonical bytes of a type and a shape; see `TensorHasher`."""
    name = dtype.name.encode("ascii")
    return struct.pack(f"<B{len(name)}sI{len(shape)}Q", len(name), name, len(shape), *shape)


def manifest_root(entries: Iterable[tuple[str, DType, Sequence[int], bytes]]) -> bytes:
    """The Merkle root of a set of named tensors: equal exactly if names, types, shapes and bytes are.

    Leaves are ordered by the UTF-8 bytes of the name. A leaf is the hash of the name's length in bytes (8 bytes,
    little-endian), the name, the header of `TensorHasher` and the tensor's digest; a node is the hash of its two
    children. Nodes are paired from the left, level by level; one that is left over moves up as it is. Leaves and
    nodes are hashed under contexts of their own, so neither passes for the other. The root of nothing is the node
    hash of nothing.

    Parameters
    ----------
    entries
        Name, dtype, shape and digest of each tensor, in any order.

    Raises
    ------
    TensorError
        A name stands twice.
    """
    leaves: dict[bytes, bytes] = {}
    for name, dtype, shape, digest in entries:
        key = name.encode()
        if key in leaves:
            raise TensorError(f"tensor {name!r} stands twice in one manifest; give each weight a name of its own")
        leaf = struct.pack("<Q", len(key)) + key + tensor_header(dtype, shape) + digest
        leaves[key] = blake3(leaf, derive_key_context=_MANIFEST_LEAF_CONTEXT).digest()
    return merkle_root([leaves[key] for key in sorted(leaves)])


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root over hashes in their order; how nodes are made stands in `manifest_root`."""
    level = list(leaves)
    while len(level) > 1:
        paired = [_node(level[i] + level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(paired) * 2 :]
    return level[0] if level else _node(b"")


def _node(children: bytes) -> bytes:
    return blake3(children, derive_key_context=_MANIFEST_NODE_CONTEXT).digest()

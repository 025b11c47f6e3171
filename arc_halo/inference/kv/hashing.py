"""Tokens as bytes, and the chain of hashes that names each block by all that stands before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from blake3 import blake3

from arc_halo.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKEN_NBYTES: Final = 4
MAX_TOKEN: Final = 2**31 - 1
# BLAKE3's key derivation mode. Part of the stored format: a changed layout gets a new date.
_HASHER: Final = blake3(derive_key_context="arc-halo 2026-11 block of keys and values")


def pack_tokens(token_ids: Sequence[int] | np.ndarray) -> bytes:
    """Token ids as four bytes each, the highest first: bytes sort as the numbers do.

    Raises
    ------
    CacheError
        It is no sequence of token ids from 0 to 2**31 - 1.
    """
    array = np.asarray(token_ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise CacheError(f"token ids are one row of integers, not {array.dtype} of shape {array.shape}")
    if array.size and not (array.min() >= 0 and array.max() <= MAX_TOKEN):
        raise CacheError(f"token ids are from 0 to {MAX_TOKEN}; these are from {array.min()} to {array.max()}")
    return array.astype(">i4").tobytes()


def unpack_tokens(packed: bytes | memoryview) -> np.ndarray:
    """The token ids of `pack_tokens`, int64 of shape [tokens]."""
    return np.frombuffer(packed, ">i4").astype(np.int64)


def block_hash(parent: bytes, tokens: bytes | memoryview) -> bytes:
    """The name of a block: BLAKE3-256 of its parent's (of the first: of the namespace's digest) and its tokens."""
    hasher = _HASHER.copy()  # the context is hashed once
    hasher.update(parent)
    hasher.update(tokens)
    return hasher.digest()


def chain(namespace_digest: bytes, packed: bytes, block_token_count: int) -> list[bytes]:
    """The hashes of all whole blocks of packed tokens, first to last."""
    hashes, parent, step = [], namespace_digest, block_token_count * TOKEN_NBYTES
    view = memoryview(packed)
    for start in range(0, len(packed) - step + 1, step):
        parent = block_hash(parent, view[start : start + step])
        hashes.append(parent)
    return hashes


def common_tokens(first: bytes | memoryview, second: bytes | memoryview) -> int:
    """How many tokens two packed rows have in common from their start."""
    length = min(len(first), len(second)) // TOKEN_NBYTES
    differing = np.flatnonzero(np.frombuffer(first, ">i4", length) != np.frombuffer(second, ">i4", length))
    return int(differing[0]) if differing.size else length

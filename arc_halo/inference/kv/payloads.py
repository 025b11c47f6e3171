"""Payloads of keys and values: as they are, compressed without loss, or eight bits for each channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from blake3 import blake3

from arc_halo.codecs import codec as lossless_codec
from arc_halo.errors import CodecError

if TYPE_CHECKING:
    from arc_halo.dtypes import DType
    from arc_halo.inference.kv.types import CodecName

RAW: Final = "raw"
LOSSLESS: Final = "blosc2-zstd"
INT8: Final = "int8-channel"
_CONTEXT: Final = "arc-halo 2026-11 payload of keys and values"
_SCALE: Final = np.dtype("<f4")
_LARGEST: Final = 127


def encode(array: np.ndarray, dtype: DType, codec: CodecName) -> tuple[str, memoryview | bytes, memoryview | bytes]:
    """The payload of keys or values of shape [kv_heads, tokens, dim].

    Returns
    -------
    str
        The id stored beside it, ``raw`` where another codec would not help.
    memoryview or bytes
        The payload.
    memoryview or bytes
        What its digest covers: the bytes of the array; of ``int8`` those of codes and scales, which stand for it.
    """
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    if codec == "int8":
        payload = _to_int8(array)
        return INT8, payload, payload
    if codec == "lossless":
        smaller = lossless_codec(LOSSLESS).encode(raw, dtype)
        if smaller is not None and memoryview(smaller).nbytes < raw.nbytes:
            return LOSSLESS, smaller, raw
    return RAW, raw, raw


def decode(payload: bytes, dtype: DType, codec_id: str, shape: tuple[int, int, int]) -> tuple[np.ndarray, memoryview]:
    """The array of a payload, and what its digest covers.

    Raises
    ------
    CodecError
        The payload is not one of this codec and shape.
    """
    if codec_id == INT8:
        return _from_int8(payload, dtype, shape), memoryview(payload)
    element = np.dtype(dtype.numpy)
    nbytes = int(np.prod(shape)) * element.itemsize
    raw = memoryview(payload) if codec_id == RAW else lossless_codec(codec_id).decode(payload, dtype, nbytes)
    if raw.nbytes != nbytes:
        raise CodecError(f"a payload of {raw.nbytes} bytes stands where {nbytes} belong")
    return np.frombuffer(raw, np.uint8).view(element).reshape(shape), raw


def payload_digest(place: bytes, content: memoryview | bytes) -> bytes:
    """BLAKE3-256 of where a payload belongs and what it holds: one that was moved elsewhere is found, too."""
    hasher = blake3(place, derive_key_context=_CONTEXT)
    hasher.update(content)
    return hasher.digest()


def place_of(block: bytes, layer_index: int, part: bytes) -> bytes:
    """Where a payload belongs: block (32 bytes), layer (4 bytes, little-endian), ``k`` or ``v``."""
    return block + layer_index.to_bytes(4, "little") + part


def _to_int8(array: np.ndarray) -> bytes:
    """Codes of eight bits, symmetric, with one scale for each head and channel over the block's tokens.

    Channels of keys differ in size far more than tokens do (Liu et al., KIVI, 2024), hence not by token.
    """
    numbers = array.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise CodecError("keys or values that are not finite have no scale: store them losslessly")
    scales = (np.abs(numbers).max(axis=1, keepdims=True) / _LARGEST).astype(_SCALE)
    codes = np.rint(numbers / np.where(scales == 0, 1, scales)).clip(-_LARGEST, _LARGEST).astype(np.int8)
    return bytes(scales.tobytes() + codes.tobytes())


def _from_int8(payload: bytes, dtype: DType, shape: tuple[int, int, int]) -> np.ndarray:
    heads, tokens, dim = shape
    scale_count, code_count = heads * dim, heads * tokens * dim
    if len(payload) != scale_count * _SCALE.itemsize + code_count:
        raise CodecError(f"a payload of {len(payload)} bytes holds no codes of shape {shape} and their scales")
    scales = np.frombuffer(payload, _SCALE, scale_count).reshape(heads, 1, dim)
    codes = np.frombuffer(payload, np.int8, code_count, offset=scale_count * _SCALE.itemsize).reshape(shape)
    return (codes * scales).astype(np.dtype(dtype.numpy))

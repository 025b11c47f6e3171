"""Differences from another chunk, sorted by the exponent of what they are differences from: the densest there is."""

from __future__ import annotations

import struct
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from arc_halo.codecs.delta import Delta
from arc_halo.codecs.numbers import Numbers
from arc_halo.codecs.pco import Pco
from arc_halo.errors import CodecError

if TYPE_CHECKING:
    from arc_halo.codecs.abc import BytesLike

_EXPONENT_SHIFT: Final = MappingProxyType({"BF16": 7, "F16": 10, "F32": 23, "F64": 52})
_MIN_GROUP: Final = 4096
_MAX_GROUPS: Final = 255  # their number is one byte
_GROUP: Final = struct.Struct("<II")


class GroupedDelta(Delta):
    """Differences as of `PcoDelta`, of each range of exponents by themselves.

    A step of training moves numbers by about as much, whatever their size. Counted in units of the last place, that
    is much for small numbers and little for large ones, so differences from numbers of one exponent are alike, and
    those of all together are not: measured on a layer of MiniLM, 0.142 in the place of 0.181. The base tells which
    belong together, so that nothing of the order is stored.

    After the header of `Delta` stand the number of groups, one byte, then of each the number of elements and of bytes,
    32 bits each, then the payloads of pcodec.
    """

    id = "pco-grouped"

    def __init__(self, level: int = 9) -> None:
        self._codec = Pco(level, search=False)

    def _encode(self, numbers: Numbers, predicted: Numbers) -> BytesLike | None:
        difference = numbers.ordered - predicted.ordered
        keys = _keys(predicted)
        if keys is None:
            sizes = [difference.size]
        else:
            difference = difference[np.argsort(keys, kind="stable")]
            sizes = _group_sizes(np.bincount(keys, minlength=256))
        places = np.cumsum([0, *sizes]).tolist()
        payloads = [self._codec.encode_ordered(difference[start:stop]) for start, stop in pairwise(places)]
        head = b"".join(_GROUP.pack(size, len(payload)) for size, payload in zip(sizes, payloads, strict=True))
        return bytes([len(sizes)]) + head + b"".join(payloads)

    def _decode(self, payload: memoryview, predicted: Numbers) -> Numbers:
        groups = _parse_groups(payload, len(predicted), self.id)
        ordered = np.empty(len(predicted), predicted.ordered.dtype)
        start = 0
        for size, group in groups:
            self._codec.decode_ordered_into(group, ordered[start : start + size])
            start += size
        keys = _keys(predicted)
        if keys is not None:
            places = np.argsort(keys, kind="stable")
            difference = np.empty_like(ordered)
            difference[places] = ordered
            ordered = difference
        ordered += predicted.ordered
        return Numbers(predicted.dtype, ordered=ordered)


def _keys(predicted: Numbers) -> np.ndarray | None:
    """The exponent of each number, or its low byte; None for types without one."""
    shift = _EXPONENT_SHIFT.get(predicted.dtype.name)
    if shift is None or len(predicted) < 2 * _MIN_GROUP:
        return None
    ordered = predicted.ordered
    exponents: np.ndarray = (ordered >> shift ^ ordered >> (ordered.dtype.itemsize * 8 - 1)).astype(np.uint8)
    if predicted.dtype.name == "F16":
        exponents &= 0x1F  # without the sign
    return exponents


def _group_sizes(counts: np.ndarray) -> list[int]:
    """Neighbouring exponents together until they are enough to be worth a group."""
    sizes: list[int] = []
    size = 0
    for count in counts.tolist():
        size += count
        if size >= _MIN_GROUP and len(sizes) < _MAX_GROUPS:
            sizes.append(size)
            size = 0
    if size:
        sizes[-1:] = [sizes[-1] + size] if sizes else [size]
    return sizes


def _parse_groups(payload: memoryview, count: int, codec_id: str) -> list[tuple[int, memoryview]]:
    """Elements and payload of each group; they must make up the whole."""
    groups = payload[0] if payload.nbytes else 0
    start = 1 + groups * _GROUP.size
    if not groups or payload.nbytes < start:
        raise CodecError(f"{codec_id}: payload of {payload.nbytes} bytes ends within its header")
    sizes = list(_GROUP.iter_unpack(payload[1:start]))
    if sum(size for size, _ in sizes) != count or sum(nbytes for _, nbytes in sizes) != payload.nbytes - start:
        raise CodecError(f"{codec_id}: the groups of a payload do not make up {count} numbers")
    found = []
    for size, nbytes in sizes:
        found.append((size, payload[start : start + nbytes]))
        start += nbytes
    return found

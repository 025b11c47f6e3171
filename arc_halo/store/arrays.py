"""Numpy arrays of one axis as PostgreSQL's binary arrays, without a step per element."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

# Object identifiers of element types are fixed: see pg_type.dat.
_HEADER: Final = struct.Struct("!iiIii")
_EMPTY: Final = struct.Struct("!iiI")


def encode_array(values: np.ndarray, element_oid: int, dtype: str) -> bytes:
    """What ``array_recv()`` takes for an array of one axis without nulls.

    Parameters
    ----------
    element_oid
        Of the element type: 23 is ``integer``, 700 ``real``.
    dtype
        That type in numpy, big-endian, such as ``>i4``.
    """
    if not len(values):
        return _EMPTY.pack(0, 0, element_oid)
    elements = np.empty(len(values), [("nbytes", ">i4"), ("value", dtype)])
    elements["nbytes"] = np.dtype(dtype).itemsize
    elements["value"] = values
    return _HEADER.pack(1, 0, element_oid, len(values), 1) + elements.tobytes()


def decode_array(sent: bytes, dtype: str) -> np.ndarray:
    """The elements of what ``array_send()`` gave for an array without nulls, in the byte order of this machine."""
    (dimensions,) = struct.unpack_from("!i", sent)
    elements = np.frombuffer(memoryview(sent)[12 + 8 * dimensions :], [("nbytes", ">i4"), ("value", dtype)])
    return elements["value"].astype(np.dtype(dtype).newbyteorder("="))

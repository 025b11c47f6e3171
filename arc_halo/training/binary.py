"""Numpy arrays in PostgreSQL's binary format, without a step per element: rows for COPY, arrays for parameters."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from psycopg.adapt import Dumper
from psycopg.pq import Format

if TYPE_CHECKING:
    import psycopg

COPY_BEGIN: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_END: Final = b"\xff\xff"
EPOCH_2000: Final = 946_684_800_000_000
"""Microseconds from 1970 to 2000, where PostgreSQL's times begin."""

_ROW: Final = np.dtype(
    [
        ("field_count", ">i2"),
        ("series_id_nbytes", ">i4"),
        ("series_id", ">i4"),
        ("step_nbytes", ">i4"),
        ("step", ">i8"),
        ("epoch_nbytes", ">i4"),
        ("epoch", ">f8"),
        ("value_nbytes", ">i4"),
        ("value", ">f8"),
        ("recorded_at_nbytes", ">i4"),
        ("recorded_at", ">i8"),
    ]
)
_EPOCH: Final = slice(_ROW.fields["epoch"][1], _ROW.fields["epoch"][1] + 8) if _ROW.fields else slice(0)
# Type and element type of the arrays that are sent, by the numpy type of the elements: see pg_type.dat.
_INT4, _INT8, _FLOAT8 = (1007, 23), (1016, 20), (1022, 701)
_TYPES: Final = {np.dtype(np.int32): _INT4, np.dtype(np.int64): _INT8, np.dtype(np.float64): _FLOAT8}
TIMES: Final = (1185, 1184)
"""Of ``timestamptz[]``, whose elements are 64-bit integers."""


def copy_rows(points: np.ndarray) -> bytes:
    """Points as rows of a binary COPY of series_id, step, epoch, value and recorded_at; an epoch of NaN is null."""
    rows = np.empty(len(points), _ROW)
    rows["field_count"] = 5
    rows["series_id_nbytes"] = 4
    for name in ("step", "epoch", "value", "recorded_at"):
        rows[f"{name}_nbytes"] = 8
    for name in ("series_id", "step", "epoch", "value"):
        rows[name] = points[name]
    rows["recorded_at"] = points["recorded_at"] - EPOCH_2000
    is_null = np.isnan(points["epoch"])
    if not is_null.any():
        return rows.tobytes()
    # A null has a length of -1 and no bytes, so such rows are shorter.
    rows["epoch_nbytes"][is_null] = -1
    is_sent = np.ones((len(rows), _ROW.itemsize), np.bool_)
    is_sent[is_null, _EPOCH] = False
    return rows.view(np.uint8).reshape(is_sent.shape)[is_sent].tobytes()


class ArrayParameter:
    """A parameter of an array type, made of a numpy array by one copy."""

    __slots__ = ("data", "oid")

    def __init__(self, values: np.ndarray, types: tuple[int, int] | None = None) -> None:
        self.oid, element_oid = types or _TYPES[values.dtype]
        elements = np.empty(len(values), [("nbytes", ">i4"), ("value", values.dtype.newbyteorder(">"))])
        elements["nbytes"] = values.dtype.itemsize
        elements["value"] = values
        self.data = struct.pack("!iiIii", 1, 0, element_oid, len(values), 1) + elements.tobytes()


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def get_key(self, obj: ArrayParameter, _format: Any) -> Any:
        return (type(obj), obj.oid)

    def upgrade(self, obj: ArrayParameter, _format: Any) -> Dumper:
        dumper = type(self)(type(obj))
        dumper.oid = obj.oid
        return dumper

    def dump(self, obj: ArrayParameter) -> bytes:
        return obj.data


def accept_arrays(cursor: psycopg.Cursor[Any]) -> None:
    """Let a cursor take `ArrayParameter`."""
    cursor.adapters.register_dumper(ArrayParameter, _ArrayDumper)


def array_elements(sent: bytes, dtype: type[np.int64 | np.float64]) -> np.ndarray:
    """The elements of what ``array_send()`` gave of an array without nulls, whose elements have 8 bytes.

    Parameters
    ----------
    sent
        Of an array of any dimensions.
    dtype
        What the elements are; times are microseconds since 2000.

    Returns
    -------
    ndarray
        Of one dimension.
    """
    (dimensions,) = struct.unpack_from("!i", sent)
    body = memoryview(sent)[12 + 8 * dimensions :]
    elements = np.frombuffer(body, [("nbytes", ">i4"), ("value", np.dtype(dtype).newbyteorder(">"))])
    return elements["value"].astype(dtype)

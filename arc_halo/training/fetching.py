"""Arrays out of the database as numpy's, without an object for each number."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from psycopg.adapt import Loader
from psycopg.pq import Format

from arc_halo.database.translate import driver_errors
from arc_halo.store.connections import driver_connection
from arc_halo.training.binary import EPOCH_2000

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg
    from psycopg.abc import Buffer
    from sqlalchemy.orm import Session

_HEADER: Final = struct.Struct("!iii")  # number of axes, whether there are nulls, type of the elements
_AXIS: Final = np.dtype([("length", ">i4"), ("lower_bound", ">i4")])
_SIZE: Final = struct.Struct("!i")


class _ArrayLoader(Loader):
    """PostgreSQL's binary form of an array (`array_send`): before each element its size, -1 for null."""

    format = Format.BINARY
    wire: ClassVar[str]

    def load(self, data: Buffer) -> np.ndarray:
        """Elements in the machine's byte order, by the axes the array has."""
        axes, has_nulls, _ = _HEADER.unpack_from(data)
        shape = np.frombuffer(data, _AXIS, axes, _HEADER.size)["length"] if axes else np.zeros(1, np.int64)
        start = _HEADER.size + axes * _AXIS.itemsize
        element = np.dtype([("size", ">i4"), ("value", self.wire)])
        if has_nulls:
            values = self._with_nulls(bytes(data), start, int(shape.prod()))
        else:
            values = np.frombuffer(data, element, int(shape.prod()), start)["value"]
        return self.converted(values.reshape(shape))

    def _with_nulls(self, data: bytes, start: int, count: int) -> np.ndarray:
        values = np.full(count, np.nan)
        for place in range(count):
            (size,) = _SIZE.unpack_from(data, start)
            start += _SIZE.size
            if size > 0:
                values[place] = np.frombuffer(data, self.wire, 1, start)[0]
                start += size
        return values

    def converted(self, values: np.ndarray) -> np.ndarray:
        """As the element type of numpy that is meant."""
        return values.astype(values.dtype.newbyteorder("="))


class _Bigints(_ArrayLoader):
    wire = ">i8"


class _Doubles(_ArrayLoader):
    """Null is NaN."""

    wire = ">f8"


class _Times(_ArrayLoader):
    wire = ">i8"

    def converted(self, values: np.ndarray) -> np.ndarray:
        """UTC, without a time zone."""
        return (values + EPOCH_2000).astype("datetime64[us]")


_LOADERS: Final = {1016: _Bigints, 1022: _Doubles, 1185: _Times}
"""By the object ids of bigint[], double precision[] and timestamptz[], which every server has."""


def accept_array_results(cursor: psycopg.Cursor[Any]) -> None:
    """Let a binary cursor return arrays of bigint, double precision and timestamptz as numpy's."""
    for oid, loader in _LOADERS.items():
        cursor.adapters.register_loader(oid, loader)


def fetch_arrays(session: Session, query: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The rows of a query, with arrays of bigint, double precision and timestamptz in them as numpy's.

    Parameters
    ----------
    query
        SQL with psycopg's placeholders.
    """
    session.flush()
    with driver_errors(), driver_connection(session.connection()).cursor(binary=True) as cursor:
        accept_array_results(cursor)
        return cursor.execute(query, parameters).fetchall()

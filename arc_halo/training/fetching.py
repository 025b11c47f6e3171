"""Rows of numbers out of the database as one array: by binary COPY, without an object for each number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from psycopg import sql

from arc_halo.database.translate import driver_errors
from arc_halo.store.connections import driver_connection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

_HEADER_NBYTES: Final = 19
_TRAILER_NBYTES: Final = 2
_TYPES: Final = {"i": "integer", "f": "double precision", "b": "boolean"}
_SINCE_2000: Final = np.datetime64("2000-01-01", "us").astype(np.int64)


def fetch_rows(session: Session, query: str, parameters: Mapping[str, Any], dtype: np.dtype[Any]) -> np.ndarray:
    """The rows of a query as a structured array, shape (n,).

    Parameters
    ----------
    query
        SQL whose columns are those of ``dtype`` by name, none of them null, with psycopg's placeholders.
    dtype
        Fields of int32 (integer), int64 (bigint), float64 (double precision), bool, and datetime64[us] (timestamptz,
        read as UTC). A query may have them in any order and of any numeric type: they are cast.
    """
    session.flush()
    wire = _wire(dtype)
    columns = sql.SQL(", ").join(
        sql.SQL("{}::{}").format(sql.Identifier(name), sql.SQL(_type(dtype[name]))) for name in dtype.names or ()
    )
    statement = sql.SQL("COPY (SELECT {} FROM ({}) AS q) TO STDOUT (FORMAT BINARY)").format(columns, sql.SQL(query))
    with (
        driver_errors(),
        driver_connection(session.connection()).cursor() as cursor,
        cursor.copy(statement, parameters) as copy,
    ):
        sent = b"".join(copy)
    count = (len(sent) - _HEADER_NBYTES - _TRAILER_NBYTES) // wire.itemsize
    return _unpacked(np.frombuffer(sent, wire, offset=_HEADER_NBYTES, count=count), dtype)


def _type(field: np.dtype[Any]) -> str:
    if field.kind == "M":
        return "timestamptz"
    return "bigint" if field == np.int64 else _TYPES[field.kind]


def _wire(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """A tuple of binary COPY: the number of its fields, and before each field its length."""
    fields: list[tuple[str, str]] = [("#", ">i2")]
    for name in dtype.names or ():
        kind = "i" if dtype[name].kind == "M" else dtype[name].kind
        fields += [(f"#{name}", ">i4"), (name, f">{kind}{dtype[name].itemsize}")]
    return np.dtype(fields)


def _unpacked(rows: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    unpacked = np.empty(len(rows), dtype)
    for name in dtype.names or ():
        is_time = dtype[name].kind == "M"
        unpacked[name] = (rows[name] + _SINCE_2000).astype("datetime64[us]") if is_time else rows[name]
    return unpacked

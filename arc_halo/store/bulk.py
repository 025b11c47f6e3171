"""Rows into tables in bulk: binary COPY, or INSERT ... SELECT unnest where row-level security forbids COPY."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
from psycopg import sql

from arc_halo.store.arrays import encode_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from typing_extensions import Buffer

_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_INT2 = struct.Struct("!h").pack
_INT4 = struct.Struct("!i").pack
_INT8 = struct.Struct("!q").pack
_FLOAT8 = struct.Struct("!d").pack
_VECTOR_HEADER = struct.Struct("!hh").pack
_NO_ENDING = sql.SQL("")
# Below this a field is gathered with its neighbours, above it goes to libpq by itself and is not copied once more.
_GATHER_NBYTES = 64 * 1024


def _vector(value: np.ndarray) -> bytes:
    return _VECTOR_HEADER(value.shape[0], 0) + value.astype(">f4").tobytes()


def _as_braces(value: np.ndarray | None) -> str | None:
    """Arrays of numbers, as text for the same reason; ``repr`` of a float is read back as the same number."""
    return None if value is None else "{" + ",".join(map(repr, value.tolist())) + "}"


def _as_text(value: np.ndarray | Sequence[int] | str | None) -> str | None:
    """Vectors and arrays inside an array: PostgreSQL has no ragged ones, so they travel as text, as JSON does."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, np.ndarray):
        return "[" + ",".join(map(repr, value.tolist())) + "]"
    return "{" + ",".join(map(str, value)) + "}"


_ENCODERS: dict[str, Callable[[Any], Buffer]] = {
    "smallint": _INT2,
    "integer": _INT4,
    "bigint": _INT8,
    "double precision": _FLOAT8,
    "text": str.encode,
    "bytea": lambda value: value,
    "uuid": lambda value: value.bytes,
    "public.vector": _vector,
    "integer[]": lambda value: encode_array(value, 23, ">i4"),
    "real[]": lambda value: encode_array(value, 700, ">f4"),
}
_TEXTS: dict[str, Callable[[Any], str | None]] = {
    "public.vector": _as_text,
    "bigint[]": _as_text,
    "jsonb": _as_text,
    "integer[]": _as_braces,
    "real[]": _as_braces,
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column and its PostgreSQL type."""

    name: str
    type: str

    @property
    def unnested(self) -> str:
        """Type of the elements that `unnest` is given."""
        return "text" if self.type in _TEXTS else self.type


@dataclass(frozen=True, slots=True)
class BulkTable:
    """A table and the columns that are written in bulk, in the order of the rows' values."""

    name: str
    columns: tuple[Column, ...]

    def insert(self, connection: psycopg.Connection[Any], rows: Sequence[Sequence[Any]], *, by_copy: bool) -> None:
        """Insert rows, if any, in their order; a duplicate aborts the statement, so callers hold a savepoint.

        Payloads pass through in buffers of their own: nothing larger than ``_GATHER_NBYTES`` is copied.
        """
        if not rows:
            return
        with connection.cursor() as cursor:
            if by_copy:
                self._copy(cursor, rows)
            else:
                self._insert_unnest(cursor, rows)

    def _copy(self, cursor: psycopg.Cursor[Any], rows: Iterable[Sequence[Any]]) -> None:
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(self._identifier, self._names)
        encoders = [_ENCODERS[column.type] for column in self.columns]
        field_count = _INT2(len(encoders))
        pending = bytearray(_SIGNATURE)
        with cursor.copy(statement) as copy:
            for row in rows:
                pending += field_count
                for encode, value in zip(encoders, row, strict=True):
                    if value is None:
                        pending += _INT4(-1)
                        continue
                    encoded = memoryview(encode(value))
                    pending += _INT4(encoded.nbytes)
                    if encoded.nbytes < _GATHER_NBYTES:
                        pending += encoded
                    else:
                        copy.write(pending)
                        copy.write(encoded)
                        pending = bytearray()
                if len(pending) >= _GATHER_NBYTES:
                    copy.write(pending)
                    pending = bytearray()
            copy.write(pending + _TRAILER)

    def insert_new(
        self, connection: psycopg.Connection[Any], rows: Sequence[Sequence[Any]], *, conflict: Sequence[str]
    ) -> list[Any]:
        """Insert the rows whose ``conflict`` columns are not there yet; returns the first column of those inserted."""
        if not rows:
            return []
        target = sql.SQL(" ON CONFLICT ({}) DO NOTHING RETURNING {}").format(
            sql.SQL(", ").join(map(sql.Identifier, conflict)), sql.Identifier(self.columns[0].name)
        )
        with connection.cursor() as cursor:
            self._insert_unnest(cursor, rows, target)
            return [row[0] for row in cursor]

    def _insert_unnest(
        self, cursor: psycopg.Cursor[Any], rows: Sequence[Sequence[Any]], ending: sql.Composable = _NO_ENDING
    ) -> None:
        arrays = sql.SQL(", ").join(sql.SQL(f"%b::{column.unnested}[]") for column in self.columns)
        selected = sql.SQL(", ").join(
            sql.SQL(f"u.{{}}::{column.type}").format(sql.Identifier(column.name)) for column in self.columns
        )
        statement = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM unnest({}) AS u ({}){}").format(
            self._identifier, self._names, selected, arrays, self._names, ending
        )
        values = [
            list(map(_TEXTS[column.type], column_values)) if column.type in _TEXTS else list(column_values)
            for column, column_values in zip(self.columns, zip(*rows, strict=True), strict=True)
        ]
        cursor.execute(statement, values)

    @property
    def _identifier(self) -> sql.Identifier:
        return sql.Identifier("arc_halo", self.name)

    @property
    def _names(self) -> sql.Composed:
        return sql.SQL(", ").join(sql.Identifier(column.name) for column in self.columns)


def _table(name: str, **columns: str) -> BulkTable:
    return BulkTable(name, tuple(Column(*item) for item in columns.items()))


TENSOR_DATA = _table(
    "tensor_data",
    tenant_id="integer",
    digest="bytea",
    raw_nbytes="integer",
    stored_nbytes="integer",
    codec="text",
    dtype="text",
    payload_checksum="bigint",
    base_digest="bytea",
    base_depth="smallint",
    payload="bytea",
    blob_location="text",
)
TENSOR_METADATA = _table(
    "tensor_metadata",
    id="uuid",
    tenant_id="integer",
    digest="bytea",
    dtype="text",
    shape="bigint[]",
    nbytes="bigint",
    element_count="bigint",
    chunk_nbytes="bigint",
    compression="text",
    seal="bytea",
    min_value="double precision",
    max_value="double precision",
    mean="double precision",
    std="double precision",
    l2_norm="double precision",
    zero_fraction="double precision",
    nan_count="bigint",
    inf_count="bigint",
    sketch="public.vector",
)
TENSOR_CHUNKS = _table(
    "tensor_chunks",
    tenant_id="integer",
    tensor_id="uuid",
    chunk_index="integer",
    digest="bytea",
    first_row="bigint",
    raw_offset="bigint",
    raw_nbytes="integer",
)
_OF_KEYS_AND_VALUES = {
    "tenant_id": "integer",
    "namespace_id": "integer",
    "block_hash": "bytea",
    "layer_index": "smallint",
    "codec": "text",
    "key_digest": "bytea",
    "value_digest": "bytea",
    "key_payload": "bytea",
    "value_payload": "bytea",
}
KV_CACHE_PAYLOADS = _table("kv_cache_payloads", **_OF_KEYS_AND_VALUES)
KV_CACHE_UNLOGGED_PAYLOADS = _table("kv_cache_unlogged_payloads", **_OF_KEYS_AND_VALUES)
EMBEDDINGS = _table(
    "embeddings",
    tenant_id="integer",
    kind="text",
    owner_id="uuid",
    row_index="bigint",
    tensor_id="uuid",
    label="text",
    dimension="integer",
    vector="public.vector",
)
ATTENTION_PATTERNS = _table(
    "attention_patterns",
    inference_session_id="uuid",
    request_number="bigint",
    layer_id="uuid",
    head_index="integer",
    token_ids="integer[]",  # noqa: S106  a type
    mean_entropy="double precision",
    mean_distance="double precision",
    first_token_share="double precision",  # noqa: S106  a type
    previous_token_share="double precision",  # noqa: S106  a type
    induction_share="double precision",
    entropies="real[]",
    top_count="smallint",
    top_positions="integer[]",
    top_weights="real[]",
    tensor_id="uuid",
)

"""The places bytes are saved to and loaded from: PostgreSQL in five ways, and files."""

from __future__ import annotations

import os
import struct
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load_file, save_file
from sqlalchemy import text

import arc_halo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import psycopg
    from models import StoredModel

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.database import Database

PIECE_NBYTES = 1 << 20

_COPY_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER = b"\xff\xff"
_INV_READ, _INV_WRITE = 0x40000, 0x20000


class Store(ABC):
    """Saves a model durably, loads it into memory, and says what it takes on disk."""

    name: str
    saves = True
    """Whether it has bytes of its own, or reads those of another."""

    @abstractmethod
    def save(self, model: StoredModel) -> None:
        """Store every byte; it would survive a power cut when this returns."""

    @abstractmethod
    def load(self, model: StoredModel) -> Mapping[str, Any]:
        """All tensors by name; a store that knows no tensors gives their bytes as one, named ``""``."""

    @abstractmethod
    def stored_nbytes(self) -> tuple[int, int]:
        """Bytes taken until now: with indexes and everything, and of payload alone."""


class _Peer(Store):
    """A table in the database of the peers."""

    table: str
    payload_nbytes: str

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection  # in autocommit: a transaction is opened where one is meant
        self._prepare()

    @abstractmethod
    def _prepare(self) -> None: ...

    def stored_nbytes(self) -> tuple[int, int]:
        """`pg_total_relation_size` of the table, and what its values add up to."""
        query = f"SELECT pg_total_relation_size('{self.table}'), ({self.payload_nbytes})::bigint"
        row = self._connection.execute(query).fetchone()
        assert row is not None
        return row[0], row[1]


class NaiveBytea(_Peer):
    """One row per tensor, psycopg's parameters and cursors as they come."""

    name = "naive bytea"
    table = "naive"
    payload_nbytes = "SELECT coalesce(sum(pg_column_size(data)), 0) FROM naive"

    def _prepare(self) -> None:
        self._connection.execute("CREATE TABLE naive (model text, name text, data bytea, PRIMARY KEY (model, name))")

    def save(self, model: StoredModel) -> None:
        """Insert tensor by tensor in one transaction."""
        with self._connection.transaction():
            for entry, raw in model.tensors():
                self._connection.execute("INSERT INTO naive VALUES (%s, %s, %s)", (model.name, entry.name, raw))

    def load(self, model: StoredModel) -> Mapping[str, Any]:
        """Select all of it; psycopg asks for text, so bytes come as hexadecimal digits."""
        return dict(self._connection.execute("SELECT name, data FROM naive WHERE model = %s", [model.name]))


class BinaryBytea(NaiveBytea):
    """The rows of `NaiveBytea`, read by somebody who knows of binary cursors."""

    name = "naive bytea, binary cursor"
    saves = False

    def _prepare(self) -> None:
        """The table is there."""

    def load(self, model: StoredModel) -> Mapping[str, Any]:
        """Select all of it, bytes as bytes."""
        with self._connection.cursor(binary=True) as cursor:
            return dict(cursor.execute("SELECT name, data FROM naive WHERE model = %s", [model.name]))


class RawCopy(_Peer):
    """COPY BINARY, both ways, of the bytes in rows of 1 MiB that TOAST does not try to compress."""

    name = "raw COPY"
    table = "copied"
    payload_nbytes = "SELECT coalesce(sum(octet_length(data)), 0) FROM copied"

    def _prepare(self) -> None:
        self._connection.execute(
            "CREATE TABLE copied (model text, place int, data bytea STORAGE EXTERNAL, PRIMARY KEY (model, place))"
        )

    def save(self, model: StoredModel) -> None:
        """Build the rows by hand, so that no driver copies them."""
        name = model.name.encode()
        head = struct.pack(f"!hi{len(name)}si", 3, len(name), name, 4)
        with self._connection.cursor() as cursor, cursor.copy("COPY copied FROM STDIN (FORMAT BINARY)") as copy:
            copy.write(_COPY_SIGNATURE)
            for place, piece in enumerate(model.pieces(PIECE_NBYTES)):
                copy.write(head + struct.pack("!ii", place, len(piece)))
                copy.write(piece)
            copy.write(_COPY_TRAILER)

    def load(self, model: StoredModel) -> Mapping[str, Any]:
        """Copy into one buffer: rows come one by one, the first with the signature before it."""
        buffer = bytearray(model.nbytes)
        at, skip = 0, len(_COPY_SIGNATURE) + 6
        query = "COPY (SELECT data FROM copied WHERE model = %s ORDER BY place) TO STDOUT (FORMAT BINARY)"
        with self._connection.cursor() as cursor, cursor.copy(query, [model.name]) as copy:
            for row in copy:
                if len(row) > skip:
                    buffer[at : at + len(row) - skip] = memoryview(row)[skip:]
                    at += len(row) - skip
                skip = 6
        return {"": buffer}


class LargeObjects(_Peer):
    """One large object per model, in pieces of 1 MiB."""

    name = "large objects"
    table = "pg_largeobject"
    payload_nbytes = "SELECT coalesce(sum(octet_length(data)), 0) FROM pg_largeobject"

    def _prepare(self) -> None:
        self._oids: dict[str, int] = {}

    def save(self, model: StoredModel) -> None:
        """Write through a descriptor in one transaction."""
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute("SELECT lo_create(0)")
            self._oids[model.name] = oid = _value(cursor)
            cursor.execute("SELECT lo_open(%s, %s)", (oid, _INV_WRITE))
            descriptor = _value(cursor)
            for piece in model.pieces(PIECE_NBYTES):
                cursor.execute("SELECT lowrite(%s, %b)", (descriptor, piece))

    def load(self, model: StoredModel) -> Mapping[str, Any]:
        """Read through a descriptor, in binary, into one buffer."""
        buffer = bytearray(model.nbytes)
        with self._connection.transaction(), self._connection.cursor(binary=True) as cursor:
            cursor.execute("SELECT lo_open(%s, %s)", (self._oids[model.name], _INV_READ))
            descriptor = _value(cursor)
            for at in range(0, model.nbytes, PIECE_NBYTES):
                cursor.execute("SELECT loread(%s, %s)", (descriptor, PIECE_NBYTES))
                piece = _value(cursor)
                buffer[at : at + len(piece)] = piece
        return {"": buffer}


def _value(cursor: psycopg.Cursor[Any]) -> Any:
    row = cursor.fetchone()
    assert row is not None
    return row[0]


class SafetensorsFiles(Store):
    """Files of the safetensors library, flushed to disk: no database, no checksum."""

    name = "safetensors file"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    def save(self, model: StoredModel) -> None:
        """Save, and flush file and folder."""
        path = self._path(model)
        save_file(load_file(model.path), path)
        for flushed in (path, self._folder):
            descriptor = os.open(flushed, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def load(self, model: StoredModel) -> Mapping[str, Any]:
        """Copy every tensor into memory of its own."""
        loaded: Mapping[str, Any] = load_file(self._path(model))
        return loaded

    def stored_nbytes(self) -> tuple[int, int]:
        """Sizes of the files."""
        nbytes = sum(path.stat().st_size for path in self._folder.iterdir())
        return nbytes, nbytes

    def _path(self, model: StoredModel) -> Path:
        return self._folder / f"{model.name}.safetensors"


class ArcHalo(Store):
    """A database of ours, under one policy: whole models with layers and heads, embeddings not made searchable."""

    def __init__(self, database: Database, policy: PolicyName) -> None:
        self.name = f"Arc-Halo {policy}"
        self.policy = policy
        self.database = database
        self._empty = self.stored_nbytes()[0]

    def save(self, model: StoredModel, version: str = "1") -> None:
        """Import the folder and commit."""
        with self.database.session() as session:
            arc_halo.import_model(
                session,
                model.folder,
                name=model.name,
                version=version,
                compression=self.policy,
                base=None,  # one model by itself: families are measured by families.py
                embeddings=False,
            )
            session.commit()

    def load(self, model: StoredModel) -> Mapping[str, Any]:
        """Every tensor as an array, its digests checked."""
        with self.database.session() as session:
            return dict(arc_halo.iter_tensors(session, f"{model.name}@1"))

    def stored_nbytes(self) -> tuple[int, int]:
        """All tables of the schema, less what they take empty, and all payloads."""
        with self.database.engine.connect() as connection:
            tables, payload = connection.execute(
                text(
                    "SELECT (SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class AS c"
                    "         WHERE c.relnamespace = 'arc_halo'::regnamespace AND c.relkind IN ('r', 'm')),"
                    "       (SELECT coalesce(sum(stored_nbytes), 0) FROM arc_halo.tensor_data)"
                )
            ).one()
        return int(tables) - getattr(self, "_empty", 0), int(payload)

    def chunk_counts(self) -> tuple[int, int]:
        """Chunks that are stored, and places in tensors where one stands: equal if nothing was shared."""
        with self.database.engine.connect() as connection:
            stored, placed = connection.execute(
                text(
                    "SELECT (SELECT count(*) FROM arc_halo.tensor_data), (SELECT count(*) FROM arc_halo.tensor_chunks)"
                )
            ).one()
        return stored, placed

"""Flipped bits in payloads and keys: each is found, none gives wrong bytes."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace

import ml_dtypes
import pytest
from sqlalchemy import text

from arc_halo.codecs.digest import chunk_digest
from arc_halo.errors import ArcHaloError, ConstraintViolation, CorruptionError
from arc_halo.registry import check_model, create_model, iter_tensors
from arc_halo.store.connections import Reading
from arc_halo.store.payloads import fetch
from tests.fixtures.long import how_many
from tests.fixtures.tensors import chunk_digests, put, same, weights
from tests.store.test_deltas import put_on, trained

flips = how_many("--flips", short=250)
TABLES = {
    "tensor_data": {
        "payload": "bytea", "digest": "bytea", "payload_checksum": "bigint", "raw_nbytes": "integer",
        "stored_nbytes": "integer", "base_digest": "bytea", "base_depth": "smallint", "tenant_id": "integer",
    },
    "tensor_chunks": {
        "digest": "bytea", "chunk_index": "integer", "first_row": "bigint", "raw_offset": "bigint",
        "raw_nbytes": "integer", "tensor_id": "uuid", "tenant_id": "integer",
    },
    "tensor_metadata": {
        "digest": "bytea", "seal": "bytea", "nbytes": "bigint", "chunk_nbytes": "bigint", "id": "uuid",
        "tenant_id": "integer",
    },
    "model_weights": {"tensor_id": "uuid"},
    "models": {"weights_digest": "bytea"},
}  # fmt: skip
BITS = {"bigint": 64, "integer": 32, "smallint": 16, "uuid": 128}
FLIPPED = {
    "bytea": "set_bit({0}, :bit % (8 * length({0})), 1 - get_bit({0}, :bit % (8 * length({0}))))",
    "uuid": "encode(set_bit(uuid_send({0}), :bit, 1 - get_bit(uuid_send({0}), :bit)), 'hex')::uuid",
}
INTEGER = "({0}::bigint # (1::bigint << :bit))::bit(64)::bigint::{1}"
TENSORS = {"matrix": weights((1100, 300)), "head": weights((200, 100), 2), "ids": weights((5,))}
TRAINED = TENSORS | {"matrix": trained(TENSORS["matrix"])}


@pytest.fixture
def filled(database):
    with database.session() as session:
        create_model(session, "m", {}, TENSORS)
        create_model(session, "m", {}, TRAINED)
        session.commit()
    return database


def flip_one(session, choose):
    """Flip one bit of one value, and say which; constraints that would refuse it are switched off."""
    table = choose.choice([*TABLES, "tensor_data", "tensor_data"])
    column = choose.choice(list(TABLES[table]))
    kind = TABLES[table][column]
    bit = choose.randrange(BITS.get(kind, 1 << 30) - (kind in BITS and kind != "uuid"))  # not the sign
    value = FLIPPED.get(kind, INTEGER).format(column, kind)
    rows = session.scalars(text(f"SELECT ctid::text FROM arc_halo.{table} WHERE {column} IS NOT NULL ORDER BY 1")).all()
    row = choose.choice(rows)
    session.execute(text("SET LOCAL session_replication_role TO replica"))
    session.execute(
        text(f"UPDATE arc_halo.{table} SET {column} = {value} WHERE ctid = CAST(:row AS tid)"), {"bit": bit, "row": row}
    )
    return f"bit {bit} of {table}.{column}"


def is_found(session):
    """A fault or an error of ours; whatever can still be read has the right bytes."""
    found = False
    for name, tensors in (("m@1", TENSORS), ("m@2", TRAINED)):
        try:
            found |= any(True for _ in check_model(session, name))
        except ArcHaloError:
            found = True
        for tensor in tensors:
            try:
                ((_, array),) = iter_tensors(session, name, [tensor])
            except (CorruptionError, LookupError):
                found = True
            else:
                assert same(array, tensors[tensor])
    return found


def flip_many(database, flips):
    choose = random.Random(flips)
    with database.session() as session:
        for _ in range(flips):
            with suppress(ConstraintViolation):  # a row that no statement can bring about
                what = flip_one(session, choose)
                session.expire_all()
                assert is_found(session), what
            session.rollback()


def test_bits_of_payloads_and_keys(filled, flips):
    flip_many(filled, flips)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_bits_of_payloads_and_keys(filled, flips):
    flip_many(filled, flips)


@pytest.mark.parametrize("compression", ["none", "fast", "dense"])
@pytest.mark.parametrize("leaning", [False, True], ids=["alone", "delta"])
def test_every_bit_of_a_payload(session, compression, leaning):
    before = weights((40, 30), dtype=ml_dtypes.bfloat16)
    (wanted,) = put(session, before, compression=compression)
    if leaning:
        big = weights((70, 30), dtype=ml_dtypes.bfloat16)
        (base,) = put(session, big, compression=compression)
        wanted = put_on(session, base, trained(big), compression)
    (digest,) = chunk_digests(session, wanted)
    with Reading(session)() as connection:
        payloads = fetch(connection, 0, [digest], None)
    chunk = payloads.chunks[digest]
    for bit in range(8 * len(chunk.payload)):
        flipped = bytearray(chunk.payload)
        flipped[bit // 8] ^= 1 << bit % 8
        changed = replace(payloads, chunks={**payloads.chunks, digest: chunk._replace(payload=bytes(flipped))})
        with pytest.raises(CorruptionError):
            assert chunk_digest(changed.decode(digest, "chunk")) == digest

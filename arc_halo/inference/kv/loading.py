"""Keys and values of a prefix back into arrays, each payload compared with its digest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from arc_halo.errors import CodecError
from arc_halo.inference.kv import payloads
from arc_halo.inference.kv.lookup import SERVABLE
from arc_halo.store.connections import Reading

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator

    import numpy as np
    import psycopg
    from sqlalchemy.orm import Session

    from arc_halo.inference.kv.layout import KVLayout
    from arc_halo.inference.kv.lookup import Prefix
    from arc_halo.inference.namespaces import Namespace

WORKERS: Final = 2
"""Threads that hash and decode while the next payloads arrive."""
_WINDOW: Final = 2 * WORKERS

_TABLES: Final = {True: "kv_cache_payloads", False: "kv_cache_unlogged_payloads"}
# One statement for the whole prefix: a sweep in the meantime takes all of it away or nothing. The namespace is looked
# at once more, since a version may have been retired after the lookup. A row without a layer says that the block itself
# is there: only then is a payload that is not there missing, and not merely gone with its block.
_THERE: Final = """
    (SELECT w.number, NULL::smallint, NULL::text, NULL::bytea, NULL::bytea, NULL::bytea, NULL::bytea, b.created_at
       FROM namespace AS n
       CROSS JOIN unnest(%(hashes)b::bytea[], %(logged)b::boolean[]) WITH ORDINALITY
                  AS w (block_hash, is_logged, number)
       JOIN arc_halo.kv_cache AS b
         ON b.tenant_id = %(tenant)s AND b.namespace_id = n.id AND b.block_hash = w.block_hash
            AND b.is_logged = w.is_logged)"""
_PART: Final = """
    (SELECT w.number, p.layer_index, p.codec, p.key_digest, p.value_digest, p.key_payload, p.value_payload, NULL
       FROM namespace AS n
       CROSS JOIN unnest(%(hashes)b::bytea[]) WITH ORDINALITY AS w (block_hash, number)
       JOIN arc_halo.{table} AS p
         ON p.tenant_id = %(tenant)s AND p.namespace_id = n.id AND p.block_hash = w.block_hash)"""


class Fault(NamedTuple):
    """Why a payload is not served."""

    block_number: int
    block_hash: bytes
    layer_index: int | None
    reason: str
    message: str
    created_at: dt.datetime | None = None
    """When the block was stored: one that is stored anew has another."""


class _Row(NamedTuple):
    number: int
    layer_index: int
    codec: str
    key_digest: bytes
    value_digest: bytes
    key_payload: bytes
    value_payload: bytes
    created_at: dt.datetime | None


def load_prefix(
    session: Session, namespace: Namespace, layout: KVLayout, prefix: Prefix
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[Fault]]:
    """The keys and values of a prefix.

    Parameters
    ----------
    layout
        That of the namespace.
    prefix
        What `find_prefix` found.

    Returns
    -------
    list of tuple of ndarray
        For each layer keys and values of shape [kv_heads, tokens, dim], ``tokens`` being those of the prefix before
        the first fault: with faults in its first block, none.
    list of Fault
        Blocks that are there without all their payloads, or whose bytes are not those that were stored. The caller
        deletes and reports them; nothing wrong is ever returned. What was evicted or retired in the meantime is no
        fault, and ends the prefix before it.
    """
    out = layout.empty(prefix.token_count)
    starts = _starts(prefix)
    wanted = {(number, layer) for number in range(len(prefix.blocks)) for layer in range(len(layout.layers))}
    there: dict[int, dt.datetime] = {}
    faults: list[Fault] = []

    def place(row: _Row) -> Fault | None:
        return _place(row, prefix, layout, out, starts)

    with (
        Reading(session)() as connection,
        ThreadPoolExecutor(WORKERS, "arc-halo-kv") as pool,
        connection.cursor(binary=True) as cursor,
    ):
        pending = []
        for row in _rows(cursor, namespace, prefix):
            if row.created_at is not None:
                there[row.number] = row.created_at
                continue
            wanted.discard((row.number, row.layer_index))
            pending.append(pool.submit(place, row))
            if len(pending) >= _WINDOW and (fault := pending.pop(0).result()) is not None:
                faults.append(fault)
        faults += [fault for future in pending if (fault := future.result()) is not None]
    faults += _missing(prefix, {(number, layer) for number, layer in wanted if number in there})
    ends = [fault.block_number for fault in faults] + [each for each in range(len(prefix.blocks)) if each not in there]
    if not ends:
        return out, []
    good = starts[min(ends)]
    found = [fault._replace(created_at=there[fault.block_number]) for fault in faults if fault.block_number in there]
    return [(keys[:, :good], values[:, :good]) for keys, values in out], found


def _starts(prefix: Prefix) -> list[int]:
    starts = [0]
    for block in prefix.blocks:
        starts.append(starts[-1] + block.used_token_count)
    return starts


def _rows(cursor: psycopg.Cursor[Any], namespace: Namespace, prefix: Prefix) -> Iterator[_Row]:
    """Payloads as they come; those of both tables in one statement."""
    tables = sorted({block.is_logged for block in prefix.blocks})
    parts = [_THERE, *(_PART.format(table=_TABLES[each]) for each in tables)]
    query = f"WITH {SERVABLE}" + " UNION ALL ".join(parts)
    values = {
        "tenant": namespace.tenant_id,
        "namespace": namespace.digest,
        "model": namespace.model_id,
        "hashes": [block.block_hash for block in prefix.blocks],
        "logged": [block.is_logged for block in prefix.blocks],
    }
    for row in cursor.stream(query, values):
        yield _Row(row[0] - 1, *row[1:])


def _place(
    row: _Row, prefix: Prefix, layout: KVLayout, out: list[tuple[np.ndarray, np.ndarray]], starts: list[int]
) -> Fault | None:
    """Check the payloads of one layer of one block and copy what is used of them to where they belong."""
    block = prefix.blocks[row.number]
    if row.layer_index >= len(layout.layers):
        return Fault(row.number, block.block_hash, row.layer_index, "unreadable", "the model has no such layer")
    shape = layout.layers[row.layer_index]
    start, stop = starts[row.number], starts[row.number + 1]
    parts = (
        (b"k", row.key_payload, row.key_digest, shape.key_dim, out[row.layer_index][0]),
        (b"v", row.value_payload, row.value_digest, shape.value_dim, out[row.layer_index][1]),
    )
    for part, payload, digest, dim, target in parts:
        place = payloads.place_of(block.block_hash, row.layer_index, part)
        try:
            array, content = payloads.decode(
                payload, layout.element, row.codec, (shape.kv_heads, block.token_count, dim)
            )
        except CodecError as error:
            return Fault(row.number, block.block_hash, row.layer_index, "bad_payload", str(error))
        if payloads.payload_digest(place, content) != digest:
            message = f"{'keys' if part == b'k' else 'values'} are not those that were stored"
            return Fault(row.number, block.block_hash, row.layer_index, "bad_payload", message)
        target[:, start:stop] = array[:, : stop - start]
    return None


def _missing(prefix: Prefix, wanted: set[tuple[int, int]]) -> list[Fault]:
    """One fault for each block that lacks payloads."""
    layers: dict[int, list[int]] = {}
    for number, layer in sorted(wanted):
        layers.setdefault(number, []).append(layer)
    return [
        Fault(number, prefix.blocks[number].block_hash, None, "missing_payload", f"layers {missing} are not there")
        for number, missing in layers.items()
    ]

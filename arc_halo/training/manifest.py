"""The rows that say what a checkpoint is made of, and the one digest over them."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3

from arc_halo.codecs.digest import merkle_root
from arc_halo.errors import CheckpointError
from arc_halo.store.bulk import BulkTable, Column
from arc_halo.store.connections import Reading
from arc_halo.training.contents import OWN_TREES, SHARED_TREES, Key
from arc_halo.training.optimizer import Number
from arc_halo.training.trees import canonical_json

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Mapping, Sequence

    import psycopg
    from sqlalchemy.orm import Session

    from arc_halo.schema import ModelCheckpoint
    from arc_halo.training.contents import Contents
    from arc_halo.training.parts import Shape

_LEAF_CONTEXT: Final = "arc-halo 2026-11 checkpoint leaf"
_SHARD: Final = {"shard_index": "integer", "shard_offsets": "bigint[]", "full_shape": "bigint[]"}
TENSORS: Final = BulkTable(
    "checkpoint_tensors",
    tuple(
        Column(*each)
        for each in {
            "name": "text",
            "checkpoint_id": "uuid",
            "component": "text",
            **_SHARD,
            "position": "integer",
            "tensor_id": "uuid",
            "weight_id": "uuid",
        }.items()
    ),
)
STATES: Final = BulkTable(
    "optimizer_state",
    tuple(
        Column(*each)
        for each in {
            "parameter_name": "text",
            "checkpoint_id": "uuid",
            "state_name": "text",
            **_SHARD,
            "tensor_id": "uuid",
            "scalar_value": "double precision",
            "scalar_dtype": "text",
            "step_count": "bigint",
            "group_index": "integer",
            "hyperparameters": "jsonb",
        }.items()
    ),
)
_ENTRIES: Final = """
SELECT c.component, c.name, '', c.shard_index, c.shard_offsets, c.full_shape, c.position, c.tensor_id, t.digest,
       t.dtype, t.shape, t.nbytes, NULL::double precision, NULL::text
  FROM arc_halo.checkpoint_tensors AS c JOIN arc_halo.tensor_metadata AS t ON t.id = c.tensor_id
 WHERE c.checkpoint_id = %(checkpoint)s
 UNION ALL
SELECT 'optimizer', o.parameter_name, o.state_name, o.shard_index, o.shard_offsets, o.full_shape, 0, o.tensor_id,
       t.digest, t.dtype, t.shape, t.nbytes, o.scalar_value, o.scalar_dtype
  FROM arc_halo.optimizer_state AS o LEFT JOIN arc_halo.tensor_metadata AS t ON t.id = o.tensor_id
 WHERE o.checkpoint_id = %(checkpoint)s
 ORDER BY 1, 7, 2, 3, 4
"""
# Rows that are there with another content than they were to get.
_OTHER_TENSORS: Final = """
SELECT u.component, u.name
  FROM unnest(%b::text[], %b::text[], %b::integer[], %b::uuid[]) AS u (component, name, shard_index, tensor_id)
  JOIN arc_halo.checkpoint_tensors AS c
       ON c.component = u.component AND c.name = u.name AND c.shard_index = u.shard_index
 WHERE c.checkpoint_id = %s AND c.tensor_id <> u.tensor_id LIMIT 1
"""
_OTHER_STATES: Final = """
SELECT 'optimizer', u.name, u.state
  FROM unnest(%b::text[], %b::text[], %b::integer[], %b::uuid[], %b::double precision[], %b::text[])
       AS u (name, state, shard_index, tensor_id, value, dtype)
  JOIN arc_halo.optimizer_state AS o
       ON o.parameter_name = u.name AND o.state_name = u.state AND o.shard_index = u.shard_index
 WHERE o.checkpoint_id = %s
   AND (o.tensor_id, o.scalar_value, o.scalar_dtype) IS DISTINCT FROM (u.tensor_id, u.value, u.dtype) LIMIT 1
"""
_DELETE_TENSORS: Final = """
DELETE FROM arc_halo.checkpoint_tensors AS c
 USING unnest(%b::text[], %b::text[], %b::text[], %b::integer[]) AS u (component, name, state, shard_index)
 WHERE c.checkpoint_id = %s AND c.component = u.component AND c.name = u.name AND c.shard_index = u.shard_index
"""
_DELETE_STATES: Final = """
DELETE FROM arc_halo.optimizer_state AS o
 USING unnest(%b::text[], %b::text[], %b::text[], %b::integer[]) AS u (component, name, state, shard_index)
 WHERE o.checkpoint_id = %s AND u.component = 'optimizer'
   AND o.parameter_name = u.name AND o.state_name = u.state AND o.shard_index = u.shard_index
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a checkpoint, a part of one, or a number, as its rows say.

    Attributes
    ----------
    tensor_id, digest, dtype, shape, nbytes
        Of the tensor; None where it is a number.
    """

    key: Key
    shard_index: int
    offsets: Shape | None
    full_shape: Shape | None
    tensor_id: uuid.UUID | None
    digest: bytes | None
    dtype: str | None
    shape: Shape
    nbytes: int
    number: Number | None

    @property
    def where(self) -> str:
        """What errors call it."""
        return str(self.key) if self.offsets is None else f"{self.key} part {self.shard_index}"


def insert_contents(
    session: Session,
    checkpoint_id: uuid.UUID,
    contents: Contents,
    tensor_ids: Sequence[uuid.UUID],
    weight_ids: Mapping[str, uuid.UUID],
) -> None:
    """Insert the rows of a state, in one statement for each table.

    Parameters
    ----------
    tensor_ids
        Of the blocks, in their order.
    weight_ids
        The model's weights by name.
    """
    with Reading(session)() as connection:
        TENSORS.insert(connection, _tensor_rows(checkpoint_id, contents, tensor_ids, weight_ids), by_copy=False)
        STATES.insert(connection, _state_rows(checkpoint_id, contents, tensor_ids), by_copy=False)


def insert_shared_contents(
    session: Session,
    checkpoint_id: uuid.UUID,
    contents: Contents,
    tensor_ids: Sequence[uuid.UUID],
    weight_ids: Mapping[str, uuid.UUID],
) -> None:
    """As `insert_contents`, beside other ranks: what one of them has brought, too, must be equal.

    Raises
    ------
    CheckpointError
        Another rank has brought something else under the same name.
    """
    tensors = _tensor_rows(checkpoint_id, contents, tensor_ids, weight_ids)
    states = _state_rows(checkpoint_id, contents, tensor_ids)
    with Reading(session)() as connection:
        conflict = ["checkpoint_id", "component", "name", "shard_index"]
        inserted = len(TENSORS.insert_new(connection, tensors, conflict=conflict))
        if inserted < len(tensors):
            columns = [[row[at] for row in tensors] for at in (2, 0, 3, 7)]
            _refuse_others(connection, _OTHER_TENSORS, checkpoint_id, columns)
        conflict = ["checkpoint_id", "parameter_name", "state_name", "shard_index"]
        inserted = len(STATES.insert_new(connection, states, conflict=conflict))
        if inserted < len(states):
            columns = [[row[at] for row in states] for at in (0, 2, 3, 6, 7, 8)]
            _refuse_others(connection, _OTHER_STATES, checkpoint_id, columns)


def _refuse_others(
    connection: psycopg.Connection[Any], statement: str, checkpoint_id: uuid.UUID, columns: Sequence[Sequence[Any]]
) -> None:
    found = connection.execute(statement, [*columns, checkpoint_id]).fetchone()
    if found is not None:
        raise CheckpointError(
            f"{Key(*found)}: another rank has brought other values of it; give what is not the same on all ranks in "
            "parts, or by one of them"
        )


def _tensor_rows(
    checkpoint_id: uuid.UUID,
    contents: Contents,
    tensor_ids: Sequence[uuid.UUID],
    weight_ids: Mapping[str, uuid.UUID],
) -> list[tuple[Any, ...]]:
    rows = []
    for position, (block, tensor_id) in enumerate(zip(contents.blocks, tensor_ids, strict=True)):
        key = block.key
        if key.component == "optimizer":
            continue
        shard = (block.shard_index, block.offsets, block.full_shape)
        weight_id = weight_ids.get(key.name) if key.component in ("weights", "gradients") else None
        rows.append((key.name, checkpoint_id, key.component, *shard, position, tensor_id, weight_id))
    # Ranks that insert the same rows wait for each other in the same order.
    return sorted(rows, key=lambda row: (row[2], row[0], row[3]))


def _state_rows(checkpoint_id: uuid.UUID, contents: Contents, tensor_ids: Sequence[uuid.UUID]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = [
        (name, checkpoint_id, state, 0, None, None, None, number.value, number.dtype)
        for (name, state), number in contents.numbers.items()
    ]
    for block, tensor_id in zip(contents.blocks, tensor_ids, strict=True):
        if block.key.component == "optimizer":
            shard = (block.shard_index, block.offsets, block.full_shape)
            rows.append((block.key.name, checkpoint_id, block.key.state, *shard, tensor_id, None, None))
    rows = [(*row, contents.step_count(row[0]), contents.group_of[row[0]]) for row in rows]
    return _with_hyperparameters(contents, sorted(rows, key=lambda row: (row[0], row[2], row[3])))


def _with_hyperparameters(contents: Contents, rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """They stand in the first row of each group: in every one they would be half of all that is written."""
    told: set[int] = set()
    done = []
    for row in rows:
        group = row[-1]
        done.append((*row, "{}" if group in told else json.dumps(contents.hyperparameters[group])))
        told.add(group)
    return done


def read_entries(session: Session, checkpoint_id: uuid.UUID) -> list[Entry]:
    """What a checkpoint is made of, component by component, weights in the order they were given."""
    with Reading(session)() as connection, connection.cursor(binary=True) as cursor:
        cursor.execute(_ENTRIES, {"checkpoint": checkpoint_id})
        return [_entry(row) for row in cursor]


def delete_entries(session: Session, checkpoint_id: uuid.UUID, entries: Iterable[Entry]) -> None:
    """Delete the rows of what is there more than once."""
    columns = [list(column) for column in zip(*((*entry.key, entry.shard_index) for entry in entries), strict=True)]
    if columns:
        with Reading(session)() as connection:
            connection.execute(_DELETE_TENSORS, [*columns, checkpoint_id])
            connection.execute(_DELETE_STATES, [*columns, checkpoint_id])


def _entry(row: tuple[Any, ...]) -> Entry:
    component, name, state, shard_index, offsets, full_shape, _, tensor_id, digest, dtype, shape, nbytes, *number = row
    return Entry(
        Key(component, name, state),
        shard_index,
        None if offsets is None else tuple(offsets),
        None if full_shape is None else tuple(full_shape),
        tensor_id,
        digest,
        dtype,
        tuple(shape or ()),
        nbytes or 0,
        None if number[0] is None else Number(*number),
    )


def manifest_digest(entries: Iterable[Entry], columns: Mapping[str, Any]) -> bytes:
    """The Merkle root over a checkpoint's tensors, numbers and JSON: equal exactly if its state is.

    A leaf is the hash, under a context of its own, of texts that are each preceded by their length in bytes (8 bytes,
    little-endian): component, name and state; then of a tensor the offsets and the full shape (both as JSON, or
    ``null``) and its digest, and of a number its type and its bits. Leaves of JSON columns are made of ``json``, the
    column's name, and the canonical JSON. Leaves are ordered by their hashes; nodes are those of `manifest_root`.
    Which rank has written a part does not matter, how the whole is cut does.
    """
    leaves = [_leaf(*each.key, *_content(each)) for each in entries]
    leaves += [_leaf("json", name, canonical_json(value)) for name, value in columns.items() if value is not None]
    return merkle_root(sorted(leaves))


def _content(entry: Entry) -> tuple[str | bytes, ...]:
    if entry.number is not None:
        return "number", entry.number.dtype or "", struct.pack("<d", entry.number.value)
    assert entry.digest is not None
    return "tensor", json.dumps(entry.offsets), json.dumps(entry.full_shape), entry.digest


def _leaf(*fields: str | bytes) -> bytes:
    parts = [each.encode() if isinstance(each, str) else each for each in fields]
    raw = b"".join(struct.pack("<Q", len(each)) + each for each in parts)
    return blake3(raw, derive_key_context=_LEAF_CONTEXT).digest()


def json_columns(checkpoint: ModelCheckpoint) -> dict[str, Any]:
    """The states that a checkpoint's row holds, by column."""
    return {column: getattr(checkpoint, column) for column in (*OWN_TREES.values(), *SHARED_TREES.values())}

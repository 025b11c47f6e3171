"""The rows that say what a checkpoint is made of, and the one digest over them."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3

from arc_halo.codecs.digest import merkle_root
from arc_halo.store.bulk import BulkTable, Column
from arc_halo.store.connections import Reading
from arc_halo.training.contents import OWN_TREES, SHARED_TREES, Key
from arc_halo.training.optimizer import Number
from arc_halo.training.trees import canonical_json

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Mapping, Sequence

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
    *,
    is_shared: bool = False,
) -> None:
    """Insert the rows of a state, in one statement for each table.

    Parameters
    ----------
    tensor_ids
        Of the blocks, in their order.
    weight_ids
        The model's weights by name.
    is_shared
        Other ranks bring the same checkpoint: what is there already stays.
    """
    tensors, states = [], _number_rows(checkpoint_id, contents)
    for position, (block, tensor_id) in enumerate(zip(contents.blocks, tensor_ids, strict=True)):
        key = block.key
        shard = (block.shard_index, block.offsets, block.full_shape)
        if key.component == "optimizer":
            states.append((key.name, checkpoint_id, key.state, *shard, tensor_id, None, None))
        else:
            weight_id = weight_ids.get(key.name) if key.component in ("weights", "gradients") else None
            tensors.append((key.name, checkpoint_id, key.component, *shard, position, tensor_id, weight_id))
    rows = [(*row, *_of_parameter(contents, row[0])) for row in states]
    # Ranks that insert the same rows wait for each other in the same order.
    tensors.sort(key=lambda row: row[2:4] + row[:1])
    rows.sort(key=lambda row: row[:1] + row[2:4])
    rows = _with_hyperparameters(contents, rows)
    with Reading(session)() as connection:
        if is_shared:
            TENSORS.insert_new(connection, tensors, conflict=("checkpoint_id", "component", "name", "shard_index"))
            key_columns = ("checkpoint_id", "parameter_name", "state_name", "shard_index")
            STATES.insert_new(connection, rows, conflict=key_columns)
        else:
            TENSORS.insert(connection, tensors, by_copy=False)
            STATES.insert(connection, rows, by_copy=False)


def _number_rows(checkpoint_id: uuid.UUID, contents: Contents) -> list[tuple[Any, ...]]:
    return [
        (name, checkpoint_id, state, 0, None, None, None, number.value, number.dtype)
        for (name, state), number in contents.numbers.items()
    ]


def _of_parameter(contents: Contents, name: str) -> tuple[int | None, int]:
    return contents.step_count(name), contents.group_of[name]


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

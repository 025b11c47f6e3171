"""Any block of any array of a checkpoint, whatever parts it was saved in: what loading by other ranks asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.dtypes import by_name
from arc_halo.errors import SliceError, TensorNotFound
from arc_halo.store import Wanted
from arc_halo.store.ranges import Rows, get_row_ranges
from arc_halo.training.contents import Key
from arc_halo.training.finding import find_checkpoint
from arc_halo.training.loading import checked_entries

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.schema import ModelCheckpoint
    from arc_halo.training.finding import CheckpointReference
    from arc_halo.training.manifest import Entry
    from arc_halo.training.parts import Shape


@dataclass(frozen=True, slots=True)
class Slab:
    """A block that is asked for: of an array, from ``offsets`` on, of that shape."""

    key: Key
    offsets: Shape
    shape: Shape


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array of a checkpoint, without its elements.

    Attributes
    ----------
    dtype
        As safetensors spells it.
    blocks
        Offsets and shape of each part that it was saved in.
    """

    key: Key
    dtype: str
    shape: Shape
    blocks: tuple[tuple[Shape, Shape], ...]


@dataclass(frozen=True, slots=True)
class _Overlap:
    """Where a part and a slab meet: rows to read of the part, of those the block, and its place in the slab."""

    rows: Rows
    block: tuple[slice, ...]
    place: tuple[slice, ...]


def list_arrays(session: Session, checkpoint: CheckpointReference) -> list[StoredArray]:
    """The arrays of a checkpoint, as whole as they were before ranks cut them.

    Raises
    ------
    CheckpointNotFound
        There is no such checkpoint, or it was not published.
    DigestMismatch
        Its rows are not those that were published.
    """
    by_key = _by_key(checked_entries(session, find_checkpoint(session, checkpoint)))
    return [
        StoredArray(key, parts[0].dtype or "", _whole(parts[0]), tuple((_offsets(each), each.shape) for each in parts))
        for key, parts in by_key.items()
    ]


def load_slab(
    session: Session,
    checkpoint: CheckpointReference,
    name: str,
    offsets: Sequence[int],
    shape: Sequence[int],
    *,
    component: str = "weights",
    state: str = "",
) -> np.ndarray:
    """A block of one array; see `load_slabs`.

    Examples
    --------
    >>> load_slab(session, run, "encoder.weight", (0, 0), (10, 384)).shape  # doctest: +SKIP
    (10, 384)
    """
    return next(load_slabs(session, checkpoint, [Slab(Key(component, name, state), tuple(offsets), tuple(shape))]))


def load_slabs(session: Session, checkpoint: CheckpointReference, slabs: Sequence[Slab]) -> Iterator[np.ndarray]:
    """Blocks of arrays in the order asked, read from the chunks that hold their rows.

    Raises
    ------
    CheckpointNotFound
        There is no such checkpoint, or it was not published.
    TensorNotFound
        It has no such array.
    SliceError
        A slab does not lie within its array.
    CorruptionError
        Rows or stored bytes are not those that were written.
    """
    found = find_checkpoint(session, checkpoint)
    by_key = _by_key(checked_entries(session, found))
    overlaps = [list(_overlaps(_parts(found, by_key, slab), slab)) for slab in slabs]
    ranges = get_row_ranges(session, [overlap.rows for each in overlaps for overlap in each])
    for slab, meets in zip(slabs, overlaps, strict=True):
        array = np.empty(slab.shape, by_name(by_key[slab.key][0].dtype or "").numpy)
        for overlap in meets:
            block = next(ranges)[overlap.block]
            if block.shape == array.shape:
                array = np.ascontiguousarray(block).reshape(slab.shape)
            else:
                array[overlap.place] = block
        yield array


def _by_key(entries: Iterable[Entry]) -> dict[Key, list[Entry]]:
    by_key: dict[Key, list[Entry]] = {}
    for entry in entries:
        if entry.number is None:
            by_key.setdefault(entry.key, []).append(entry)
    return by_key


def _parts(checkpoint: ModelCheckpoint, by_key: dict[Key, list[Entry]], slab: Slab) -> list[Entry]:
    parts = by_key.get(slab.key)
    if parts is None:
        raise TensorNotFound(f"checkpoint {checkpoint.id} of step {checkpoint.step} has no array {slab.key}")
    whole = _whole(parts[0])
    is_within = len(slab.offsets) == len(slab.shape) == len(whole) and all(
        start >= 0 <= size and start + size <= full
        for start, size, full in zip(slab.offsets, slab.shape, whole, strict=True)
    )
    if not is_within:
        raise SliceError(f"{slab.key}: no block of {slab.shape} at {slab.offsets}; its shape is {whole}")
    return parts


def _overlaps(parts: Iterable[Entry], slab: Slab) -> Iterator[_Overlap]:
    for part in parts:
        starts = [max(*each) for each in zip(_offsets(part), slab.offsets, strict=True)]
        stops = [
            min(at + size, begin + length)
            for at, size, begin, length in zip(_offsets(part), part.shape, slab.offsets, slab.shape, strict=True)
        ]
        if any(start >= stop for start, stop in zip(starts, stops, strict=True)):
            continue
        within = _slices(starts, stops, _offsets(part))
        first = within[0] if within else slice(0, 0)
        assert part.tensor_id is not None
        rows = Rows(Wanted(part.where, part.tensor_id, part.nbytes), first.start, first.stop)
        yield _Overlap(rows, (slice(None), *within[1:]) if within else (), _slices(starts, stops, slab.offsets))


def _slices(starts: Sequence[int], stops: Sequence[int], origin: Shape) -> tuple[slice, ...]:
    return tuple(slice(start - at, stop - at) for start, stop, at in zip(starts, stops, origin, strict=True))


def _offsets(entry: Entry) -> Shape:
    return (0,) * len(entry.shape) if entry.offsets is None else entry.offsets


def _whole(entry: Entry) -> Shape:
    return entry.shape if entry.full_shape is None else entry.full_shape

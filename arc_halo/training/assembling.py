"""Arrays made whole again from the parts that ranks have written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from arc_halo.dtypes import by_name
from arc_halo.errors import CheckpointError, RanksMissing
from arc_halo.store import Meter, Progress, Wanted, get_arrays
from arc_halo.training.parts import explain_cover

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.training.contents import Key
    from arc_halo.training.manifest import Entry


def assemble(session: Session, entries: Sequence[Entry], progress: Progress | None = None) -> dict[Key, np.ndarray]:
    """Whole arrays by key, read where they stay; only parts that are scattered over their whole are copied there."""
    meter = Meter(progress, "load", sum(entry.nbytes for entry in entries))
    wanted = []
    for entry in entries:
        assert entry.tensor_id is not None
        wanted.append(Wanted(entry.where, entry.tensor_id, entry.nbytes))
    cut = {entry.key: entry for entry in entries if entry.full_shape is not None}
    arrays = {key: np.empty(entry.full_shape or (), by_name(entry.dtype or "").numpy) for key, entry in cut.items()}
    blocks = {entry.where: arrays[entry.key][_place(entry)] for entry in entries if entry.full_shape is not None}
    buffers = {
        name: block.reshape(-1).view(np.uint8).data for name, block in blocks.items() if block.flags.c_contiguous
    }
    for entry, array in zip(entries, get_arrays(session, wanted, buffers=buffers), strict=True):
        if entry.full_shape is None:
            arrays[entry.key] = array
        elif entry.where not in buffers:
            blocks[entry.where][...] = array
        meter.add(entry.nbytes)
    return arrays


def _place(entry: Entry) -> tuple[slice, ...]:
    return tuple(slice(at, at + size) for at, size in zip(entry.offsets or (), entry.shape, strict=True))


def find_redundant(entries: Iterable[Entry]) -> list[Entry]:
    """Parts that another rank has brought, too; all others together are each array exactly once.

    Raises
    ------
    RanksMissing
        Parts leave holes.
    CheckpointError
        Parts overlap, or are of several arrays.
    """
    by_key: dict[Key, dict[tuple[Any, ...], Entry]] = {}
    redundant = []
    for entry in sorted(entries, key=lambda entry: entry.shard_index):
        kept = by_key.setdefault(entry.key, {}).setdefault((entry.offsets, entry.shape), entry)
        if kept is not entry:
            if kept.digest != entry.digest:
                raise CheckpointError(f"{entry.key}: ranks hold other values of the part at {entry.offsets}")
            redundant.append(entry)
    for key, blocks in by_key.items():
        _check_cover(key, list(blocks.values()))
    return redundant


def _check_cover(key: Key, entries: Sequence[Entry]) -> None:
    first, *others = entries
    for other in others:
        if (other.full_shape, other.dtype) != (first.full_shape, first.dtype):
            wholes = (f"{each.dtype}{list(each.full_shape or each.shape)}" for each in (first, other))
            raise CheckpointError(f"{key}: ranks hold parts of different arrays, {' and '.join(wholes)}")
    if first.offsets is None or first.full_shape is None:
        return
    blocks = [(entry.offsets or (), entry.shape) for entry in entries]
    if (wrong := explain_cover(first.full_shape, blocks)) is not None:
        kind = RanksMissing if wrong.endswith("missing") else CheckpointError
        raise kind(f"{key}: {wrong} from what the ranks have brought; each must bring all that it holds, and once")

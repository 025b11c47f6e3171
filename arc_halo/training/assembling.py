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
    """Whole arrays by key: what was stored whole is read where it stays, parts are copied to their places."""
    meter = Meter(progress, "load", sum(entry.nbytes for entry in entries))
    wanted = []
    for entry in entries:
        assert entry.tensor_id is not None
        wanted.append(Wanted(entry.where, entry.tensor_id, entry.nbytes))
    arrays: dict[Key, np.ndarray] = {}
    for entry, array in zip(entries, get_arrays(session, wanted), strict=True):
        if entry.offsets is None or entry.full_shape is None:
            arrays[entry.key] = array
        else:
            if entry.key not in arrays:
                assert entry.dtype is not None
                arrays[entry.key] = np.empty(entry.full_shape, by_name(entry.dtype).numpy)
            block = tuple(slice(at, at + size) for at, size in zip(entry.offsets, entry.shape, strict=True))
            arrays[entry.key][block] = array
        meter.add(entry.nbytes)
    return arrays


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

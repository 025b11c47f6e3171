"""Arrays made whole again from the parts that ranks have written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from arc_halo.dtypes import by_name
from arc_halo.store import Meter, Progress, Wanted, get_arrays

if TYPE_CHECKING:
    from collections.abc import Sequence

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

"""Whole models as arrays: the first time from the database, the next time as maps of files on this machine."""

from __future__ import annotations

import logging
from itertools import groupby
from typing import TYPE_CHECKING

from arc_halo.dtypes import by_name
from arc_halo.registry.naming import find_model
from arc_halo.registry.reading import tensor_not_found, weights_of
from arc_halo.settings import load_settings
from arc_halo.store import Meter, Progress, Wanted, get_arrays, read_pieces
from arc_halo.store.cache import ReadCache

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.codecs.abc import BytesLike
    from arc_halo.schema import Model, Tensor
    from arc_halo.store.get import Piece

_log = logging.getLogger(__name__)


def configured_cache() -> ReadCache | None:
    """The cache of ``ARC_HALO_CACHE_FOLDER``; None where ``ARC_HALO_CACHE_NBYTES`` is 0."""
    settings = load_settings()
    return ReadCache(settings.cache_folder, settings.cache_nbytes) if settings.cache_nbytes else None


def load_model(
    session: Session,
    model: Model | uuid.UUID | str,
    *,
    names: Iterable[str] | None = None,
    cache: ReadCache | bool | None = True,
    verify: bool = False,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """All tensors of a model by name; what was loaded on this machine before is a read-only map of a file.

    Which tensors those are, and their digests, is asked of the database each time, so what was changed or deleted
    there never comes from the cache. Tensors of equal content are one array.

    Parameters
    ----------
    names
        Which tensors; all by default.
    cache
        The configured one by default; False, or None, for arrays in memory, which can be written to.
    verify
        Compare the digests of what is in the cache; by default the file system is trusted, as with any file of
        weights. What comes from the database is always compared.
    progress
        Called with a phase, bytes done and bytes in all.

    Returns
    -------
    dict of str to ndarray
        Of the stored types; packed ones as bytes.

    Raises
    ------
    ModelNotFound, TensorNotFound
        There is no such model, or it has no such tensor.
    CorruptionError
        Stored bytes are not those that were written.

    Examples
    --------
    >>> load_model(session, "minilm@production")["pooler.dense.weight"].shape  # doctest: +SKIP
    (384, 384)
    """
    found = find_model(session, model)
    weights = {weight.name: weight.tensor for weight in weights_of(session, found)}
    asked = list(weights) if names is None else list(names)
    for name in asked:
        if name not in weights:
            raise tensor_not_found(found, name, weights)
    tensors = {weights[name].id: (name, weights[name]) for name in reversed(asked)}
    store = configured_cache() if cache is True else cache or None
    meter = Meter(progress, "load", sum(tensor.nbytes for _, tensor in tensors.values()))
    loaded = {} if store is None else _mapped(store, [each for _, each in tensors.values()], verify=verify, meter=meter)
    missing = [Wanted(name, tensor.id, tensor.nbytes) for name, tensor in tensors.values() if tensor.id not in loaded]
    if store is not None and missing:
        _fill(session, store, missing, tensors, meter)
        fresh = [tensors[each.tensor_id][1] for each in missing]
        loaded |= _mapped(store, fresh, verify=False, meter=Meter(None, "load", 0))
        missing = [each for each in missing if each.tensor_id not in loaded]
    for each, array in zip(missing, get_arrays(session, missing), strict=True):
        loaded[each.tensor_id] = array
    return {name: loaded[weights[name].id] for name in asked}


def _mapped(store: ReadCache, tensors: Sequence[Tensor], *, verify: bool, meter: Meter) -> dict[uuid.UUID, np.ndarray]:
    found = {}
    for tensor in tensors:
        array = store.get(tensor.digest, by_name(tensor.dtype), tuple(tensor.shape), verify=verify)
        if array is not None:
            found[tensor.id] = array
            meter.add(tensor.nbytes)
    return found


def _fill(
    session: Session,
    store: ReadCache,
    missing: Sequence[Wanted],
    tensors: dict[uuid.UUID, tuple[str, Tensor]],
    meter: Meter,
) -> None:
    """Write what is missing while it streams by; a disk that is full leaves it to memory."""
    filled = [each for each in missing if each.nbytes]
    by_manifest = {each.name: tensors[each.tensor_id][1] for each in filled}
    try:
        for name, pieces in groupby(read_pieces(session, filled), key=lambda piece: piece.manifest.name):
            tensor = by_manifest[name]
            store.put(tensor.digest, by_name(tensor.dtype), tuple(tensor.shape), _counted(pieces, meter))
        for each in missing:
            if not each.nbytes:
                tensor = tensors[each.tensor_id][1]
                store.put(tensor.digest, by_name(tensor.dtype), tuple(tensor.shape), ())
        store.evict()
    except OSError as error:
        _log.warning("the read cache %s cannot be written to (%s): tensors stay in memory", store.folder, error)


def _counted(pieces: Iterator[Piece], meter: Meter) -> Iterator[BytesLike]:
    for piece in pieces:
        yield piece.raw
        meter.add(len(piece.raw))

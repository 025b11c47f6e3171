"""Whole models as arrays: the first time from the database, the next time as maps of files on this machine."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING

from arc_halo.dtypes import by_name
from arc_halo.errors import ArcHaloError
from arc_halo.registry.forms import restore
from arc_halo.registry.naming import find_model
from arc_halo.registry.reading import choose_tensors, weights_of
from arc_halo.settings import load_settings
from arc_halo.store import Meter, Progress, Wanted, get_arrays, read_pieces
from arc_halo.store.cache import ReadCache

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.codecs.abc import BytesLike
    from arc_halo.dtypes import DType
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
    dequantize: bool = False,
    progress: Progress | None = None,
) -> dict[str, np.ndarray]:
    """All tensors of a model by name; what was loaded on this machine before is a read-only map of a file.

    Which tensors those are, and their digests, is asked of the database each time, so what was changed or deleted
    there never comes from the cache. Names of equal content, tied or not, share one array, so arrays are read-only:
    copy what you change.

    Parameters
    ----------
    names
        Which tensors; all by default.
    cache
        The configured one by default. False, or None, for arrays in memory, one for each name, which can be written
        to. What has no place in the cache, or on its disk, is in memory, too.
    verify
        Compare the digests of what is in the cache each time. By default that is done once after each start of the
        machine, and with files that others may write to; otherwise the file system is trusted, as with any file of
        weights, and nothing is read before it is used. What comes from the database is always compared.
    dequantize
        As in `iter_tensors`. The floats are in memory, made anew each time; the cache keeps what is stored.
    progress
        Called with ``load``, bytes done and bytes in all.

    Returns
    -------
    dict of str to ndarray
        Of the stored types; packed ones as bytes.

    Raises
    ------
    ModelNotFound, TensorNotFound
        There is no such model, or it has no such tensor.
    QuantizationError
        A tensor of ``names`` is in blocks that cannot be dequantised.
    CorruptionError
        Stored bytes are not those that were written.

    Examples
    --------
    >>> load_model(session, "minilm@production")["pooler.dense.weight"].shape  # doctest: +SKIP
    (384, 384)
    """
    found = find_model(session, model)
    rows = {weight.name: weight for weight in weights_of(session, found)}
    asked, forms = choose_tensors(found, rows, names, dequantize=dequantize)
    weights = {name: weight.tensor for name, weight in rows.items()}
    stored = [part for name in asked for part in (forms[name].parts if name in forms else (name,))]
    arrays = _load(session, weights, stored, cache=cache, verify=verify, progress=progress)
    return {
        name: restore(forms[name], [arrays[part] for part in forms[name].parts]) if name in forms else arrays[name]
        for name in asked
    }


def _load(
    session: Session,
    weights: Mapping[str, Tensor],
    asked: Sequence[str],
    *,
    cache: ReadCache | bool | None,
    verify: bool,
    progress: Progress | None,
) -> dict[str, np.ndarray]:
    """Tensors as they are stored."""
    store = configured_cache() if cache is True else cache or None
    if store is None:
        wanted = [(name, weights[name]) for name in asked]
        meter = Meter(progress, "load", sum(tensor.nbytes for _, tensor in wanted))
        return dict(zip(asked, _read(session, wanted, meter), strict=True))
    tensors: dict[uuid.UUID, tuple[str, Tensor]] = {}
    for name in asked:
        tensors.setdefault(weights[name].id, (name, weights[name]))
    arrays = _read_through(session, store, tensors, verify=verify, progress=progress)
    return {name: arrays[weights[name].id] for name in asked}


def _read_through(
    session: Session,
    store: ReadCache,
    tensors: Mapping[uuid.UUID, tuple[str, Tensor]],
    *,
    verify: bool,
    progress: Progress | None,
) -> dict[uuid.UUID, np.ndarray]:
    """Map what is there, write and map what has a place, and read the rest into memory."""
    meter = Meter(progress, "load", sum(tensor.nbytes for _, tensor in tensors.values()))
    arrays = _mapped(store, tensors.values(), verify=verify)
    meter.add(sum(array.nbytes for array in arrays.values()))
    if missing := [each for key, each in tensors.items() if key not in arrays]:
        kept = _with_a_place(store, [tensors[key][1] for key in arrays], missing)
        with _where_it_can_be_written(store):
            _fill(session, store, kept, meter)
        arrays |= _mapped(store, kept, verify=False)
        with _where_it_can_be_written(store):
            store.evict()  # who wrote at the same time made room in the same place; what is mapped stays readable
        rest = [each for each in missing if each[1].id not in arrays]
        meter.done = sum(array.nbytes for array in arrays.values())
        for (_, tensor), array in zip(rest, _read(session, rest, meter), strict=True):
            array.flags.writeable = False
            arrays[tensor.id] = array
    return arrays


def _mapped(store: ReadCache, tensors: Iterable[tuple[str, Tensor]], *, verify: bool) -> dict[uuid.UUID, np.ndarray]:
    found = {tensor.id: store.get(*_content(tensor), verify=verify) for _, tensor in tensors}
    return {key: array for key, array in found.items() if array is not None}


def _with_a_place(
    store: ReadCache, mapped: Iterable[Tensor], missing: Iterable[tuple[str, Tensor]]
) -> list[tuple[str, Tensor]]:
    """What can be kept beside what is mapped: a model larger than the cache would push itself out at each load."""
    room = store.max_nbytes - sum(store.file_nbytes(*_content(tensor)) for tensor in mapped)
    kept = []
    for name, tensor in missing:
        nbytes = store.file_nbytes(*_content(tensor))
        if nbytes <= room:
            kept.append((name, tensor))
            room -= nbytes
    return kept


def _fill(session: Session, store: ReadCache, kept: Sequence[tuple[str, Tensor]], meter: Meter) -> None:
    """Write tensors while they stream by."""
    by_manifest = {name: tensor for name, tensor in kept if tensor.nbytes}
    wanted = [Wanted(name, tensor.id, tensor.nbytes) for name, tensor in by_manifest.items()]
    store.evict(sum(store.file_nbytes(*_content(tensor)) for _, tensor in kept))
    for name, pieces in groupby(read_pieces(session, wanted), key=lambda piece: piece.manifest.name):
        store.put(*_content(by_manifest[name]), _counted(pieces, meter))
    for _, tensor in kept:
        if not tensor.nbytes:  # it has no pieces
            store.put(*_content(tensor), ())


@contextmanager
def _where_it_can_be_written(store: ReadCache) -> Iterator[None]:
    """Where it cannot, tensors are left to memory."""
    try:
        yield
    except ArcHaloError:  # some are OSErrors, too, and none is the cache's
        raise
    except OSError as error:
        _log.warning("the read cache %s cannot be written to (%s): tensors stay in memory", store.folder, error)


def _read(session: Session, wanted: Sequence[tuple[str, Tensor]], meter: Meter) -> Iterator[np.ndarray]:
    for array in get_arrays(session, [Wanted(name, tensor.id, tensor.nbytes) for name, tensor in wanted]):
        meter.add(array.nbytes)
        yield array


def _counted(pieces: Iterator[Piece], meter: Meter) -> Iterator[BytesLike]:
    for piece in pieces:
        yield piece.raw
        meter.add(len(piece.raw))


def _content(tensor: Tensor) -> tuple[bytes, DType, tuple[int, ...]]:
    return tensor.digest, by_name(tensor.dtype), tuple(tensor.shape)

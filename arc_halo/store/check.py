"""Are the stored bytes those that were written? Every chunk, every tensor, every manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from arc_halo.codecs.digest import TensorHasher
from arc_halo.errors import CorruptionError, TensorNotFound
from arc_halo.store.connections import Reading
from arc_halo.store.get import Manifest, Part, Wanted, find_manifests, grouped, iter_results
from arc_halo.store.progress import Meter, Progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy.orm import Session

    from arc_halo.store.get import Piece


@dataclass(frozen=True, slots=True)
class Fault:
    """Something stored that is not what was written."""

    tensor: str
    message: str
    chunk_index: int | None = None


def check_tensors(session: Session, wanted: Iterable[Wanted], progress: Progress | None = None) -> Iterator[Fault]:
    """Read every chunk of the tensors and compare checksums, digests and seals; yields what does not agree.

    Raises
    ------
    TensorNotFound
        A tensor was deleted in the meantime.
    """
    asked = list(wanted)
    meter = Meter(progress, "verify", sum(each.nbytes for each in asked))
    connect = Reading(session)
    for group in grouped(asked):
        found = find_manifests(connect, group)
        parts = [Part(each, range(len(each.layout))) for each in found if isinstance(each, Manifest)]
        results = iter_results(connect, parts)
        for each, manifest in zip(group, found, strict=True):
            if isinstance(manifest, TensorNotFound):
                raise manifest
            if isinstance(manifest, CorruptionError):
                yield Fault(each.name, str(manifest))
            else:
                yield from _check_chunks(manifest, results, meter)


def _check_chunks(manifest: Manifest, results: Iterator[Piece | CorruptionError], meter: Meter) -> Iterator[Fault]:
    """Take as many results as the tensor has chunks."""
    hasher = TensorHasher(manifest.layout.dtype, manifest.layout.shape)
    whole = True
    for index, result in zip(range(len(manifest.layout)), results, strict=False):
        meter.add(manifest.layout[index].nbytes)
        if isinstance(result, CorruptionError):
            whole = False
            yield Fault(manifest.name, str(result), index)
        else:
            hasher.update(result.raw)
    if whole and hasher.digest() != manifest.digest:
        yield Fault(manifest.name, f"tensor {manifest.name!r}: its chunks are sound, its digest names other bytes")

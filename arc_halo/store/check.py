"""Are the stored bytes those that were written? Every chunk, every tensor, every manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from arc_halo.codecs.digest import TensorHasher
from arc_halo.errors import CorruptionError
from arc_halo.store.connections import Reading
from arc_halo.store.get import Manifest, Part, Wanted, iter_results, load_manifests
from arc_halo.store.progress import Meter, Progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy.orm import Session

    from arc_halo.store.connections import Connect


@dataclass(frozen=True, slots=True)
class Fault:
    """Something stored that is not what was written."""

    tensor: str
    message: str
    chunk_index: int | None = None


def check_tensors(session: Session, wanted: Iterable[Wanted], progress: Progress | None = None) -> Iterator[Fault]:
    """Read every chunk of the tensors and compare checksums, digests and seals; yields what does not agree."""
    asked = list(wanted)
    meter = Meter(progress, "verify", sum(each.nbytes for each in asked))
    connect = Reading(session)
    for each in asked:
        yield from _check_tensor(connect, each, meter)


def _check_tensor(connect: Connect, wanted: Wanted, meter: Meter) -> Iterator[Fault]:
    try:
        (manifest,) = load_manifests(connect, [wanted])
    except CorruptionError as error:
        yield Fault(wanted.name, str(error))
        return
    yield from _check_chunks(connect, manifest, meter)


def _check_chunks(connect: Connect, manifest: Manifest, meter: Meter) -> Iterator[Fault]:
    hasher = TensorHasher(manifest.layout.dtype, manifest.layout.shape)
    whole = True
    for index, result in enumerate(iter_results(connect, [Part(manifest, range(len(manifest.layout)))])):
        meter.add(manifest.layout[index].nbytes)
        if isinstance(result, CorruptionError):
            whole = False
            yield Fault(manifest.name, str(result), index)
        else:
            hasher.update(result.raw)
    if whole and hasher.digest() != manifest.digest:
        yield Fault(manifest.name, f"tensor {manifest.name!r}: its chunks are sound, its digest names other bytes")

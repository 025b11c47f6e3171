"""What a new chunk may be a delta of: the chunk at the same place of a tensor that is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from arc_halo.codecs.chunking import ChunkLayout
from arc_halo.codecs.delta import Base, is_comparable, is_grown
from arc_halo.codecs.digest import chunk_digest
from arc_halo.codecs.policy import MAX_DEPTH
from arc_halo.dtypes import by_name
from arc_halo.errors import CorruptionError
from arc_halo.store.get import Manifest, Wanted, find_manifests

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.dtypes import DType
    from arc_halo.store.connections import Connect
    from arc_halo.store.payloads import Payloads, StoredChunk
    from arc_halo.store.sources import TensorSource

MIN_NBYTES = 4096
"""A smaller chunk stands for itself: the chain of its bases would cost more to read than a delta saves."""
MAX_TIMES = 8
"""A base that is larger by this would be fetched and decoded whole for little: a thousand such are a gibibyte."""
MAX_CHUNK_NBYTES = 4 << 20
"""A tensor of wider elements than its base's has chunks of as many elements, up to this size."""


@dataclass(frozen=True, slots=True)
class Lean:
    """A stored chunk that a new one may lean on; ``dtype`` is None where its row alone tells how to read it."""

    chunk: StoredChunk
    dtype: DType | None
    payloads: Payloads

    def read(self) -> Base | None:
        """Its bytes; None if they are damaged: what leans on them would be lost with them."""
        try:
            raw = self.payloads.decode(self.chunk.digest, f"base {self.chunk.digest.hex()}")
        except CorruptionError:
            return None
        return Base(raw, self.dtype or by_name(self.chunk.dtype)) if chunk_digest(raw) == self.chunk.digest else None


class Bases:
    """The tensors that those about to be stored may lean on."""

    def __init__(
        self, connect: Connect, sources: Sequence[TensorSource], bases: Mapping[str, uuid.UUID], policy: PolicyName
    ) -> None:
        self._max_depth = MAX_DEPTH[policy]
        self._manifests: dict[str, Manifest] = {}
        asked = [source for source in sources if source.name in bases] if self._max_depth else []
        if asked:
            wanted = [Wanted(source.name, bases[source.name], source.nbytes) for source in asked]
            found = zip(asked, find_manifests(connect, wanted), strict=True)
            self._manifests = {
                source.name: manifest
                for source, manifest in found
                if isinstance(manifest, Manifest) and _scaled(source, manifest.layout) is not None
            }

    @property
    def max_depth(self) -> int:
        """How many deltas may lean on one another; 0 where there is nothing to lean on."""
        return self._max_depth if self._manifests else 0

    def layout(self, source: TensorSource) -> ChunkLayout:
        """How to cut a tensor: as its base is, element by element, so that each chunk has one to lean on."""
        manifest = self._manifests.get(source.name)
        layout = ChunkLayout.of(source.dtype, source.shape) if manifest is None else _scaled(source, manifest.layout)
        assert layout is not None
        return layout

    def digest(self, source: TensorSource, index: int, nbytes: int) -> bytes | None:
        """Digest of the chunk at the same place of the base; None if there is none, or leaning would not pay."""
        manifest = self._manifests.get(source.name)
        if manifest is None or nbytes < MIN_NBYTES or index >= len(manifest.chunk_digests):
            return None
        if manifest.layout[index].nbytes > MAX_TIMES * nbytes:
            return None
        return manifest.chunk_digests[index]

    def lean(self, source: TensorSource, digest: bytes, payloads: Payloads) -> Lean | None:
        """The chunk to lean on: that of the base or, where deltas would grow too deep, one that it leans on itself."""
        chunk = payloads.shallow(digest, self._max_depth)
        if chunk is None:
            return None
        # A chunk that tensors of two types share knows one of them; the base's own type says how to compare.
        is_base = chunk.digest == digest
        return Lean(chunk, self._manifests[source.name].layout.dtype if is_base else None, payloads)


def _scaled(source: TensorSource, base: ChunkLayout) -> ChunkLayout | None:
    """The layout that puts the same elements into each chunk as the base's does; None if there is no such."""
    if not is_grown(base.shape, source.shape) or not is_comparable(base.dtype, source.dtype):
        return None
    nbytes = base.chunk_nbytes * source.dtype.component_nbytes // base.dtype.component_nbytes
    return ChunkLayout(source.dtype, source.shape, nbytes) if nbytes <= MAX_CHUNK_NBYTES else None

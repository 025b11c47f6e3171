"""How far the numbers of two models are apart: per tensor and per layer, read in bounded windows."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.dtypes import DTYPES
from arc_halo.store import Meter, Progress, Wanted
from arc_halo.store.connections import Reading
from arc_halo.store.get import Part, grouped, iter_pieces, load_manifests

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.codecs.chunking import ChunkSpan
    from arc_halo.dtypes import DType
    from arc_halo.registry.pairing import Pair, PairedWeight
    from arc_halo.store.connections import Connect
    from arc_halo.store.get import Manifest, Piece

_BLOCK = 1 << 16  # elements that stay in the processor's cache from one pass to the next


@dataclass(slots=True)
class Distance:
    """How far numbers are apart; sums of squares of the first, of the second, of their product and their difference.

    Elements that are not finite in either are left out of the sums, counted in ``unsound``, and in ``changed`` where
    they are not alike. A complex element counts as two numbers.
    """

    before: float = 0.0
    after: float = 0.0
    product: float = 0.0
    difference: float = 0.0
    max_abs: float = 0.0
    changed: int = 0
    unsound: int = 0
    count: int = 0

    def add(self, other: Distance) -> None:
        """Take in those of other elements."""
        for name in ("before", "after", "product", "difference", "changed", "unsound", "count"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_abs = max(self.max_abs, other.max_abs)

    def add_equal(self, squares: float, unsound: int, count: int) -> None:
        """Take in elements that both have; ``squares`` is the sum of theirs."""
        self.add(Distance(before=squares, after=squares, product=squares, unsound=unsound, count=count))

    @property
    def l2(self) -> float:
        """Euclidean distance."""
        return math.sqrt(self.difference)

    @property
    def relative_l2(self) -> float:
        """The distance in units of the first one's norm; infinite from nothing to something."""
        return self.l2 / math.sqrt(self.before) if self.before else (math.inf if self.difference else 0.0)

    @property
    def cosine(self) -> float | None:
        """Of the angle between the two as vectors; None where one is zero or too large for its square."""
        norms = math.sqrt(self.before) * math.sqrt(self.after)
        return min(1.0, max(-1.0, self.product / norms)) if norms and math.isfinite(norms) else None

    @property
    def changed_share(self) -> float:
        """Share of the elements that are not the same numbers."""
        return self.changed / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class TensorDistance:
    """A tensor of both models; ``layer`` is the path of its layer, empty where it has none.

    Where the tensor has another number of rows in one of them, as a vocabulary that grew, the rows that both have are
    compared. Numbers that are not floats, as position ids, are no part of a layer's distance.
    """

    name: str
    layer: str
    is_float: bool
    distance: Distance


def measure_distances(
    session: Session, pairs: Sequence[Pair], *, progress: Progress | None = None
) -> list[TensorDistance]:
    """How far the tensors of pairs are apart, in their order, without those that have a reason not to be compared.

    Chunks that both have are not read: what they add to the norms is what is missing of them.

    Raises
    ------
    CorruptionError
        Stored bytes are not those that were written.
    """
    listed = [pair for pair in pairs if pair.is_equal or pair.reason is None]
    # Tied weights are one pair under several names.
    read = {_key(pair): pair for pair in listed if not pair.is_equal}
    found = dict(zip(read, _read(Reading(session), list(read.values()), progress), strict=True))
    return [
        TensorDistance(
            pair.after.name,
            pair.after.layer,
            pair.after.dtype in DTYPES and pair.reason is None and DTYPES[pair.after.dtype].is_float,
            _equal(pair) if pair.is_equal else found[_key(pair)],
        )
        for pair in listed
    ]


def by_layer(distances: Iterable[TensorDistance]) -> dict[str, Distance]:
    """Distances of whole layers, in their order."""
    layers: defaultdict[str, Distance] = defaultdict(Distance)
    for each in distances:
        if each.is_float:
            layers[each.layer].add(each.distance)
    return dict(layers)


def _key(pair: Pair) -> tuple[object, object]:
    return pair.before.tensor_id, pair.after.tensor_id


def _equal(pair: Pair) -> Distance:
    distance = Distance()
    norm = pair.before.norm or 0.0
    distance.add_equal(norm * norm, pair.before.unsound_count, pair.element_count)
    return distance


def _read(connect: Connect, pairs: Sequence[Pair], progress: Progress | None) -> Iterator[Distance]:
    """Both sides of all pairs in one stream: a chunk and the base it leans on are often fetched together."""
    meter = Meter(progress, "compare", sum(pair.before.nbytes + pair.after.nbytes for pair in pairs))
    waiting: deque[_Reading] = deque()

    def parts() -> Iterator[Part]:
        both = (each for pair in pairs for each in (pair.before, pair.after))
        wanted = (Wanted(each.name, each.tensor_id, each.nbytes) for each in both)
        manifests = (found for group in grouped(wanted) for found in load_manifests(connect, group))
        for pair, before, after in zip(pairs, manifests, manifests, strict=True):
            waiting.append(_Reading(pair, (before, after)))
            yield from waiting[-1].parts()

    def result() -> Distance:
        reading = waiting.popleft()
        meter.add(reading.pair.before.nbytes + reading.pair.after.nbytes)
        return reading.result()

    for piece in iter_pieces(connect, parts()):
        while (side := waiting[0].side_of(piece)) is None:
            yield result()
        waiting[0].take(side, piece)
    while waiting:
        yield result()


@dataclass(slots=True)
class _Reading:
    """A pair whose pieces arrive by their place, of either side as it is cut; what both have got to is compared.

    ``seen`` and ``seen_unsound`` are squares and not finite elements of the shorter side in what was read: its whole
    ones are known, and the chunks that were not read, being equal, hold what is missing.
    """

    pair: Pair
    manifests: tuple[Manifest, Manifest]
    total: Distance = field(default_factory=Distance)
    seen: float = 0.0
    seen_unsound: int = 0
    rest: tuple[deque[np.ndarray], deque[np.ndarray]] = field(default_factory=lambda: (deque(), deque()))

    def parts(self) -> Iterator[Part]:
        """What is to be read, by its place in the tensor."""
        equal = self._equal_chunks()
        places = [
            (first, side, span.index)
            for side, manifest in enumerate(self.manifests)
            for span in manifest.layout
            if span.index not in equal and (first := _first_element(manifest, span)) < self.pair.element_count
        ]
        for _, side, index in sorted(places):
            yield Part(self.manifests[side], range(index, index + 1))

    def _equal_chunks(self) -> frozenset[int]:
        before, after = self.manifests
        if before.layout.dtype != after.layout.dtype or self._shorter.norm is None:
            return frozenset()
        both = zip(before.layout, before.chunk_digests, after.layout, after.chunk_digests, strict=False)
        return frozenset(
            span.index for span, ours, other, theirs in both if ours == theirs and span.offset == other.offset
        )

    @property
    def _shorter(self) -> PairedWeight:
        return (self.pair.before, self.pair.after)[self.pair.shorter]

    def side_of(self, piece: Piece) -> int | None:
        """0 for a piece of the first, 1 for one of the second, None for one of another pair."""
        return next((side for side in (0, 1) if piece.manifest is self.manifests[side]), None)

    def take(self, side: int, piece: Piece) -> None:
        """Compare as much as has come of both."""
        numbers = np.frombuffer(piece.raw, _number(piece.manifest.layout.dtype))
        per_element = 2 if piece.manifest.layout.dtype.name == "C64" else 1
        left = self.pair.element_count - _first_element(piece.manifest, piece.manifest.layout[piece.index])
        self.rest[side].append(numbers[: left * per_element])
        before, after = self.rest
        while before and after:
            count = min(before[0].size, after[0].size, _BLOCK)
            self._compare(before[0][:count], after[0][:count])
            for arrays in self.rest:
                arrays[0] = arrays[0][count:]
                if not arrays[0].size:
                    arrays.popleft()

    def _compare(self, before: np.ndarray, after: np.ndarray) -> None:
        compared = compare_numbers(before, after)
        self.total.add(compared)
        if not compared.unsound:
            self.seen += (compared.before, compared.after)[self.pair.shorter]
            return
        own = (before, after)[self.pair.shorter].astype(np.float64)
        finite = own[np.isfinite(own)]
        self.seen += float(finite @ finite)
        self.seen_unsound += own.size - finite.size

    def result(self) -> Distance:
        """Of all elements that both have."""
        count = self.pair.element_count - self.total.count
        if self._shorter.norm is not None and count:
            squares = max(self._shorter.norm**2 - self.seen, 0.0)
            self.total.add_equal(squares, self._shorter.unsound_count - self.seen_unsound, count)
        return self.total


def _first_element(manifest: Manifest, span: ChunkSpan) -> int:
    return span.offset * 8 // manifest.layout.dtype.bits


def _number(dtype: DType) -> np.dtype | str:
    return "<f4" if dtype.name == "C64" or dtype.numpy is None else dtype.numpy


def compare_numbers(before: np.ndarray, after: np.ndarray) -> Distance:
    """Of as many elements of each, as float64; whether integers of one type changed is asked of them as they are."""
    ours, theirs = before.astype(np.float64), after.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if before.dtype.kind in "iub":
            changed = np.count_nonzero(before != after)
        else:
            changed = np.count_nonzero((ours != theirs) & ~(np.isnan(ours) & np.isnan(theirs)))
        finite = np.isfinite(ours) & np.isfinite(theirs)
        unsound = finite.size - int(np.count_nonzero(finite))
        if unsound:
            ours, theirs = np.where(finite, ours, 0.0), np.where(finite, theirs, 0.0)
        apart = theirs - ours
        return Distance(
            before=float(ours @ ours),
            after=float(theirs @ theirs),
            product=float(ours @ theirs),
            difference=float(apart @ apart),
            max_abs=float(np.abs(apart).max(initial=0.0)),
            changed=int(changed),
            unsound=unsound,
            count=before.size,
        )

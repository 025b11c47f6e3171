"""Points between the training loop and whoever writes them: packed as they are logged, bounded in number."""

from __future__ import annotations

import json
import math
import operator
import struct
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from arc_halo.errors import MetricError
from arc_halo.training.keys import SeriesKey, series_key
from arc_halo.training.points import POINT

if TYPE_CHECKING:
    from collections.abc import Callable

    Spill = Callable[[list[SeriesKey], np.ndarray], bool]

CAPACITY: Final = 1 << 16
"""Points; 36 bytes each."""
SPILL_SECONDS: Final = 10.0
"""Points that nobody has fetched for so long are spilled by the next that is logged: whoever writes them hangs."""
_PACKED: Final = struct.Struct("=iqddq")
assert _PACKED.size == POINT.itemsize
_MAX_STEP: Final = 2**63 - 1
_NO_NUMBERS: Final = (str, bytes, bytearray, complex, np.complexfloating)  # though float() takes some of them


class Taken(NamedTuple):
    """Points that were fetched.

    Attributes
    ----------
    keys
        All keys so far; of ``points``, ``series_id`` is an index into them.
    points
        In the order they were logged.
    through
        How many points were logged in all, these included.
    number
        Their place among those that were spilled: with greater numbers are those that came later.
    """

    keys: list[SeriesKey]
    points: np.ndarray
    through: int
    number: int


class PointBuffer:
    """Packs points as they are logged; when it is full, or nobody fetches them, they are spilled to make room.

    Parameters
    ----------
    spill
        Takes keys and points that have no room, and says whether it could; called by the thread that logs, which it
        must not make wait for a network. Points for which there is no room anywhere are dropped, and counted.
    wake
        Called when half of the room is used.
    """

    def __init__(self, spill: Spill, wake: Callable[[], None], capacity: int = CAPACITY) -> None:
        self.logged = self.dropped = 0
        self.latest: dict[int, tuple[int, float]] = {}
        self.last_step: int | None = None
        self.last_epoch: float | None = None
        self._keys: list[SeriesKey] = []
        self._known: dict[SeriesKey, int] = {}
        self._indexes: dict[tuple[str, str], dict[str, int]] = {}
        self._spill_to, self._wake = spill, wake
        self._capacity = capacity
        self._data = bytearray(capacity * _PACKED.size)
        self._count = 0
        self._since = 0
        self._lock = threading.Lock()

    def append(
        self, metrics: Mapping[str, Any], step: int, epoch: float | None, scope: str, context: Mapping[str, Any] | None
    ) -> None:
        """Take the points of one step: all of them or, where one cannot be recorded, none.

        Raises
        ------
        MetricError
            A name, scope, context, step, epoch or value cannot be recorded.
        """
        step = _step(step)
        epoch = None if epoch is None else _epoch(epoch)
        packed_epoch = math.nan if epoch is None else epoch
        indexes = self._indexes_of(scope, context)
        points = []
        for name, value in metrics.items():
            index = indexes.get(name)
            if index is None:
                index = self._new_index(indexes, name, scope, context)
            points.append((index, value if isinstance(value, float) else _number(name, value)))
        now = time.time_ns() // 1000
        pack, latest, size = _PACKED.pack_into, self.latest, _PACKED.size
        with self._lock:
            self._make_room(len(points), now)
            data, at = self._data, self._count * size
            for index, number in points:
                pack(data, at, index, step, packed_epoch, number, now)
                latest[index] = (step, number)
                at += size
            self._count += len(points)
            self.logged += len(points)
            if self.last_step is None or step >= self.last_step:
                self.last_step = step
                self.last_epoch = self.last_epoch if epoch is None else epoch
            is_half_full = self._count - len(points) < self._capacity // 2 <= self._count
        if is_half_full:
            self._wake()

    def take(self, reserve: Callable[[], int]) -> Taken:
        """Fetch what is there, and a number for it while nothing can be spilled."""
        with self._lock:
            return Taken(self._keys[:], self._fetch(), self.logged, reserve())

    def clear(self) -> None:
        """Forget what is there."""
        with self._lock:
            self._count = 0

    def spill(self) -> None:
        """Spill what is there."""
        with self._lock:
            self._spill()

    def key(self, index: int) -> SeriesKey:
        """The key of an index."""
        return self._keys[index]

    def _make_room(self, count: int, now: int) -> None:
        is_full = self._count + count > self._capacity
        if self._count and (is_full or now - self._since > SPILL_SECONDS * 1e6):
            self._spill(is_full=is_full)
        if not self._count:
            self._since = now
        if count > self._capacity:  # more metrics in one step than there was room for
            self._capacity = 2 * count
            self._data = bytearray(self._capacity * _PACKED.size)

    def _spill(self, *, is_full: bool = False) -> None:
        count = self._count
        if count and not self._spill_to(self._keys, self._fetch()):
            if is_full:
                self.dropped += count
            else:
                self._count = count  # they stay where they are

    def _fetch(self) -> np.ndarray:
        points = np.frombuffer(memoryview(self._data)[: self._count * _PACKED.size], POINT).copy()
        self._count = 0
        return points

    def _indexes_of(self, scope: str, context: Mapping[str, Any] | None) -> dict[str, int]:
        """Indexes by name; contexts that are equal but for their order share them once `series_key` has seen them."""
        text = "{}" if context is None else _text_of(context)
        try:
            return self._indexes[scope, text]
        except KeyError:
            with self._lock:
                return self._indexes.setdefault((scope, text), {})

    def _new_index(self, indexes: dict[str, int], name: str, scope: str, context: Mapping[str, Any] | None) -> int:
        key = series_key(name, scope, context)
        with self._lock:
            if key not in self._known:
                self._known[key] = len(self._keys)
                self._keys.append(key)
            return indexes.setdefault(name, self._known[key])


def _text_of(context: Mapping[str, Any]) -> str:
    """What tells contexts apart before they are checked; a key that is no text is none of a context."""
    if not isinstance(context, Mapping) or not all(isinstance(key, str) for key in context):
        raise MetricError(f"a context is a mapping with text for keys, such as {{'rank': 3}}, not {context!r:.80}")
    try:
        return json.dumps(context, default=repr)
    except (TypeError, ValueError, RecursionError) as error:
        raise MetricError(f"the context {context!r:.80} is no JSON: {error}; give text, numbers, lists") from None


def _step(step: Any) -> int:
    if isinstance(step, bool) or not hasattr(step, "__index__"):
        raise MetricError(f"a step is a whole number, not {step!r:.80}; give the number of updates so far")
    number = operator.index(step)
    if not 0 <= number <= _MAX_STEP:
        raise MetricError(f"step {number} is outside 0 to 2^63 - 1; give the number of updates so far")
    return number


def _epoch(epoch: Any) -> float | None:
    number = _number("epoch", epoch)
    if math.isnan(number):
        return None
    if not 0 <= number < math.inf:
        raise MetricError(f"epoch {number} is none; give passes through the data so far, whole or in part")
    return number


def _number(name: str, value: Any) -> float:
    """A number of one value, whatever library it is of: each of them converts by ``float()``."""
    cause = None
    if not isinstance(value, _NO_NUMBERS) and not getattr(value, "ndim", 0):
        try:
            # What torch derives gradients through warns when it is converted.
            return float(value if (detach := getattr(value, "detach", None)) is None else detach())
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # the last is what torch raises
            cause = error
    raise MetricError(
        f"{name!r:.80} is {value!r:.80}, not one real number; log its mean, or each part under a name of its own"
    ) from cause

"""Activations for applications: read or computed, whichever measurements say is cheaper."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import SQLAlchemyError

from arc_halo.errors import BlobStoreError, CacheError, ConfigurationError, CorruptionError, DatabaseError
from arc_halo.inference.activations.keys import check_hook_points, check_namespace, input_digest
from arc_halo.inference.activations.measuring import Habit, Measurements, Said
from arc_halo.inference.activations.reading import (
    UNREADABLE,
    Readout,
    StoredActivation,
    find_activations,
    read_activations,
    read_sound,
)
from arc_halo.inference.activations.repairing import repair_activations
from arc_halo.inference.activations.storing import put_activations
from arc_halo.inference.expiry import ttl_seconds
from arc_halo.inference.quota_warning import QuotaWarning

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.inference.namespaces import Namespace

_log = logging.getLogger(__name__)
_TROUBLE: Final = (DatabaseError, BlobStoreError, ConfigurationError, CorruptionError, SQLAlchemyError)
"""What a cache that cannot be reached raises: the application goes on without it."""
_CURIOSITY: Final = 0.01
"""Of the time that the cheaper way takes, as much is spent on measuring the other one again."""


@dataclass(slots=True)
class _Lookup:
    """What is stored, and what was read of it."""

    found: dict[str, StoredActivation] = field(default_factory=dict)
    readout: Readout = field(default_factory=Readout)
    said: Said = field(default_factory=Said)


class ActivationCache:
    """Activations of one model, read or computed; several threads may use it.

    A database that does not answer is a miss, and a warning in the log: the application computes as it would without a
    cache.

    Parameters
    ----------
    database
        Where they are kept; each look-up and each store is a transaction of its own, and nothing is computed in one.
    namespace
        Of the model that computes, of kind ``activation``.
    ttl
        Seconds, or a timedelta, that entries live; None for as long as the quota has room.
    flush_seconds
        How long hits and measurements are collected before they are written.

    Raises
    ------
    CacheError
        The namespace is not one of activations, or the ttl is none.

    Examples
    --------
    >>> with ActivationCache(database, namespace, ttl=3600) as cache:  # doctest: +SKIP
    ...     cache.get_or_compute({"input_ids": ids}, ["layers.3"], lambda: {"layers.3": run(ids)})
    """

    def __init__(
        self,
        database: Database,
        namespace: Namespace,
        *,
        ttl: dt.timedelta | float | None = None,
        flush_seconds: float = 5.0,
    ) -> None:
        check_namespace(namespace)
        self.namespace = namespace
        self._database = database
        self._ttl = ttl_seconds(ttl)
        self._measurements = Measurements(database, namespace, flush_seconds)
        self._quota_warning = QuotaWarning(database, namespace)
        self._habits: dict[tuple[str, ...], Habit] = {}
        self._saved_ms = 0.0  # threads that write over each other's savings do no harm

    def get_or_compute(
        self,
        inputs: Mapping[str, np.ndarray] | Callable[[], Mapping[str, np.ndarray]],
        hook_points: Iterable[str],
        compute: Callable[[], Mapping[str, np.ndarray]],
        *,
        check: Callable[[], None] | None = None,
    ) -> dict[str, np.ndarray]:
        """The outputs of hook points for inputs, in the order asked.

        They are computed where one of them is not stored, where a stored one is damaged, and where reading them has
        taken longer than computing them. Reading costs the sum of what reading each took; computing as much as the
        longest computation that gave one of them, since one gives them all.

        Parameters
        ----------
        inputs
            All that the outputs depend on besides the namespace: one that is left out gives wrong answers. Or a
            function that gives them: it is called only where something is looked for.
        compute
            Gives at least the hook points asked, for these inputs; called once at most, outside any transaction of
            the cache.
        check
            Called before anything is served, and again before anything is kept: it raises where the namespace is not,
            or no longer, that of what computes. What is only computed needs no check.

        Raises
        ------
        CacheError
            A name is none, or ``compute`` leaves a hook point out.
        TensorError
            An array has a type that cannot be stored.
        Exception
            Whatever ``compute`` raises; nothing is stored then.
        """
        names = check_hook_points(hook_points)
        habit = self._habits.setdefault(tuple(names), Habit())
        if habit.computes and not self._is_curious(*habit.milliseconds):
            # Not even looked for: asking the database would take a good part of the time that computing does.
            computed, seconds = _compute(names, compute)
            habit.computed(seconds)
            return {name: computed[name] for name in names}
        began = time.perf_counter()  # the check, too, is only for what is read
        if check is not None:
            check()
        digest = input_digest(inputs() if callable(inputs) else inputs)
        lookup = self._look_up(names, digest, habit, always=habit.computes)
        if len(lookup.readout.arrays) == len(names):
            seconds = time.perf_counter() - began
            habit.read(seconds, lookup.said.read_ms)
            self._measurements.hit(digest, lookup.found, seconds)
            return lookup.readout.arrays
        computed, seconds = _compute(names, compute)
        habit.computed(seconds, lookup.said.recompute_ms)
        unsound = {name: computed[name] for name in names if name not in lookup.found or name in lookup.readout.damaged}
        if unsound:
            if check is not None:
                check()
            self._store(digest, unsound, lookup.readout.damaged, seconds)
        self._measurements.computed(digest, lookup.found, seconds)
        return {name: computed[name] for name in names}

    def get(self, inputs: Mapping[str, np.ndarray], hook_points: Iterable[str]) -> dict[str, np.ndarray] | None:
        """What is stored of hook points for inputs, however long reading takes; None unless all of them are sound."""
        names = check_hook_points(hook_points)
        began = time.perf_counter()
        digest = input_digest(inputs)
        lookup = self._look_up(names, digest, Habit(), always=True)
        if len(lookup.readout.arrays) < len(names):
            self._measurements.missed()
            return None
        self._measurements.hit(digest, lookup.found, time.perf_counter() - began)
        return lookup.readout.arrays

    def put(
        self,
        inputs: Mapping[str, np.ndarray],
        activations: Mapping[str, np.ndarray],
        *,
        recompute_ms: float | None = None,
        pinned: bool = False,
    ) -> bool:
        """Store outputs of hook points for inputs, as `put_activations` does, and commit."""
        self._measurements.flush_hits()  # whom the quota evicts is decided by them
        unit = partial(
            put_activations,
            namespace=self.namespace,
            input_digest=input_digest(inputs),
            activations=activations,
            ttl=self._ttl,
            recompute_ms=recompute_ms,
            pinned=pinned,
        )
        is_stored = self._database.transaction(unit)
        if not is_stored:
            self._quota_warning.tell()
        return is_stored

    def flush(self) -> None:
        """Write the hits and measurements that were collected; what cannot be written is lost, and logged."""
        self._measurements.flush()

    def close(self) -> None:
        """Write what was collected. The database stays open; closing twice does nothing."""
        self._measurements.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _look_up(self, names: Sequence[str], digest: bytes, habit: Habit, *, always: bool = False) -> _Lookup:
        def unit(session: Session) -> _Lookup:
            found = find_activations(session, self.namespace, names, digest)
            said = self._measurements.said(digest, found)
            if len(found) < len(names) or not (always or self._is_read(said, habit)):
                return _Lookup(found, said=said)
            try:
                return _Lookup(found, Readout(read_sound(session, found)), said)
            except UNREADABLE:
                # Which of them, and an audit of each: that is a write.
                readout = self._database.transaction(
                    lambda writing: read_activations(writing, self.namespace, digest, found), attempts=1
                )
                return _Lookup(found, readout, said)

        try:
            # Once: computing is sooner done than a server waited for.
            return self._database.read(unit, attempts=1)
        except _TROUBLE as error:
            _log.warning("activations are computed, the cache does not answer: %s", error)
            return _Lookup()

    def _is_read(self, said: Said, habit: Habit) -> bool:
        """Whether reading is cheaper, or it is time to measure it again; what was not measured yet is read."""
        expected = habit.expect(said)
        if expected is None:
            return True
        read_ms, recompute_ms = expected
        if habit.is_to_be_tried(read_ms, recompute_ms):
            return False
        is_read = read_ms <= recompute_ms
        return not is_read if self._is_curious(read_ms, recompute_ms) else is_read

    def _is_curious(self, *milliseconds: float) -> bool:
        """Whether enough was saved up to take the dearer way once: a measurement may be out of date, either way."""
        saved = self._saved_ms + _CURIOSITY * min(milliseconds)
        is_curious = saved >= max(milliseconds)
        self._saved_ms = saved - max(milliseconds) if is_curious else saved
        return is_curious

    def _store(
        self,
        digest: bytes,
        activations: Mapping[str, np.ndarray],
        damaged: Mapping[str, StoredActivation],
        seconds: float,
    ) -> None:
        def unit(session: Session) -> bool:
            is_stored = put_activations(
                session, self.namespace, digest, activations, ttl=self._ttl, recompute_ms=1e3 * seconds
            )
            # Equal content is not written again: what is damaged would stay so.
            repair_activations(session, {name: (entry.tensor_id, activations[name]) for name, entry in damaged.items()})
            return is_stored

        self._measurements.flush_hits()  # whom the quota evicts is decided by them
        try:
            is_stored = self._database.transaction(unit)
        except (CacheError, *_TROUBLE) as error:  # names were refused before
            _log.warning("activations are not kept: %s", error)
            return
        if not is_stored:
            self._quota_warning.tell()


def _compute(
    names: Sequence[str], compute: Callable[[], Mapping[str, np.ndarray]]
) -> tuple[Mapping[str, np.ndarray], float]:
    """What ``compute`` gives, and the seconds that took."""
    began = time.perf_counter()
    computed = compute()
    seconds = time.perf_counter() - began
    if missing := [name for name in names if name not in computed]:
        raise CacheError(f"compute() gave no output of {', '.join(missing)}; it gave {', '.join(computed)}")
    return computed, seconds

"""Points of one attempt into the database: keys become series, which are made when they are first met."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from sqlalchemy import text

from arc_halo.training.points import series_ids, write_points

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.training.keys import Goal, SeriesKey


_LOCK_TIMEOUT: Final = text("SELECT set_config('lock_timeout', :milliseconds, true)")


def wait_for_locks(session: Session, seconds: float) -> None:
    """Let the transaction wait for each lock for so long at most, 0.1 s at least."""
    session.execute(_LOCK_TIMEOUT, {"milliseconds": f"{max(seconds, 0.1) * 1e3:.0f}"})


class PointStore:
    """Writes points whose series are indexes into a list of keys; what it has learnt counts once it is committed.

    Parameters
    ----------
    attempt_id
        Whose points they are.
    goals
        Which values of a metric are better, by its name.
    """

    def __init__(self, attempt_id: uuid.UUID, goals: Mapping[str, Goal]) -> None:
        self._attempt_id = attempt_id
        self._goals = goals
        self._ids: dict[SeriesKey, int] = {}
        self._new_ids: dict[SeriesKey, int] = {}

    def begin(self) -> None:
        """Forget what was learnt since the last commit: its transaction was rolled back."""
        self._new_ids = {}

    def store(self, session: Session, keys: Sequence[SeriesKey], points: np.ndarray) -> None:
        """Write points; of ``points``, ``series_id`` is an index into the keys."""
        if not len(points):
            return
        used = np.unique(points["series_id"])
        missing = [key for index in used if (key := keys[index]) not in self._ids and key not in self._new_ids]
        if missing:
            self._new_ids |= series_ids(session, self._attempt_id, missing, self._goals)
        known = self._ids | self._new_ids if self._new_ids else self._ids
        table = np.zeros(len(keys), np.int32)
        table[used] = [known[keys[index]] for index in used]
        mapped = points.copy()
        mapped["series_id"] = table[points["series_id"]]
        write_points(session, mapped)

    def commit(self) -> None:
        """What was written is there."""
        self._ids |= self._new_ids
        self._new_ids = {}

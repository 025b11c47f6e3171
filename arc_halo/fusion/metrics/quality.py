"""Quality of answers, and what was gained by asking several."""

from __future__ import annotations

import threading
import unicodedata
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Mapping
    from typing import Any

    from sqlalchemy.orm import Session

    from arc_halo.fusion.operations.calls import Call

ALONE_ROLES: Final = ("primary", "secondary", "drafter")
"""Roles whose members answer the question; the others route, judge, check or join what these said."""
_CLOSING: Final = " .,;:!?"
_QUOTES: Final = " \"'`“”‘’"  # noqa: RUF001
_STANDING: Final = text("""
SELECT c.member_id, sum(c.quality) AS total, count(*) AS answer_count
  FROM (SELECT o.id
          FROM arc_halo.fusion_operations AS o
         WHERE o.reactor_id = :reactor_id AND o.replay_of IS NULL AND o.quality IS NOT NULL
           AND (CAST(:without AS uuid) IS NULL OR o.id <> :without)
         ORDER BY o.started_at DESC
         LIMIT 10000) AS o
  JOIN arc_halo.fusion_operation_members AS c ON c.operation_id = o.id
 WHERE c.quality IS NOT NULL
 GROUP BY c.member_id
""")


def normalised(answer: str) -> str:
    """An answer as it is compared: without case, outer quotes, closing punctuation and the amount of white space.

    A sign or point before a number stays, as ``-5`` is not ``5``.
    """
    plain = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
    return plain.strip(_QUOTES).rstrip(_CLOSING).strip(_QUOTES) or plain


def exact_match(answer: str, reference: str) -> float:
    """1 where both are the same once `normalised`, else 0."""
    return float(normalised(answer) == normalised(reference))


class Standing:
    """How good members were so far, each by the mean quality of its answers; several threads may use it.

    It starts with the newest 10,000 operations that are stored, and goes on with those of this process: what other
    processes add meanwhile is not in it, which moves a mean little and spares each operation a statement.
    """

    def __init__(self, totals: Mapping[uuid.UUID, tuple[float, int]] | None = None) -> None:
        self._totals = dict(totals or {})
        self._lock = threading.Lock()

    @classmethod
    def read(cls, session: Session, reactor_id: uuid.UUID, *, without: uuid.UUID | None = None) -> Standing:
        """As it is stored, by one statement; an operation may be left out. Replays do not count."""
        rows = session.execute(_STANDING, {"reactor_id": reactor_id, "without": without})
        return cls({row.member_id: (row.total, row.answer_count) for row in rows})

    def add(self, calls: Iterable[Call]) -> None:
        """Go on with the calls of an operation."""
        with self._lock:
            for call in calls:
                if call.quality is not None:
                    total, count = self._totals.get(call.member.id, (0.0, 0))
                    self._totals[call.member.id] = (total + call.quality, count + 1)

    def mean(self, member_id: uuid.UUID) -> float | None:
        """Mean quality of a member's answers; None where none is known."""
        with self._lock:
            total, count = self._totals.get(member_id, (0.0, 0))
        return total / count if count else None

    def best(self, candidates: Iterable[Any]) -> Any:
        """The best of members: by mean quality so far; those without one by greater weight, then smaller priority.

        Parameters
        ----------
        candidates
            One or more, with ``id``, ``weight``, ``priority`` and ``name``.
        """

        def rank(member: Any) -> tuple[bool, float, float, int, str]:
            mean = self.mean(member.id)
            return mean is None, -(mean or 0.0), -member.weight, member.priority, member.name

        return min(candidates, key=rank)


def gain_and_gap(quality: float, alone: Mapping[Any, Iterable[float]], best: Any) -> tuple[float | None, float | None]:
    """Quality above that of the best member alone, and below that of the best answer.

    Parameters
    ----------
    alone
        Qualities of each member's answers. One that answered several times counts by their mean: what asking it once
        would have given.
    best
        Key of the best member; None where nobody answered.
    """
    answers = {member: list(each) for member, each in alone.items()}
    if best is None or not answers:
        return None, None
    mean = sum(answers[best]) / len(answers[best])
    return quality - mean, max(max(each) for each in answers.values()) - quality

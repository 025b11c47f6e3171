"""Whether a run can be done again: two attempts compared bit for bit, and what that proves of the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from sqlalchemy import text

from arc_halo.errors import CheckpointError
from arc_halo.training.finding import find_attempt

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session

    from arc_halo.schema import TrainingAttempt

Level: TypeAlias = Literal["L0", "L1", "L2"]
"""L0: what it was made of is kept. L1: run again, with equal results. L2: resumed, and equal from there on."""

# What the machine does, and not the model, differs between any two runs: the scope system is left out.
_LINE: Final = """
SELECT l.attempt_id, n.name, n.scope, n.context, p.step, pg_catalog.float8send(p.value) AS bits
  FROM arc_halo.attempt_line(:{0}_run, :{0}_number) AS l
  JOIN arc_halo.metric_series AS n ON n.attempt_id = l.attempt_id AND n.scope <> 'system'
  JOIN arc_halo.v_training_points AS p ON p.series_id = n.id AND p.step > l.after_step AND p.step <= l.through_step
 WHERE p.step > :after
"""
_POINTS: Final = text(f"""
WITH a AS ({_LINE.format("a")}), b AS ({_LINE.format("b")})
SELECT count(*), count(*) FILTER (WHERE a.bits <> b.bits), min(a.step) FILTER (WHERE a.bits <> b.bits)
  FROM a JOIN b USING (name, scope, context, step)
 -- What both took over from one ancestor is one thing, not two that are equal.
 WHERE a.attempt_id <> b.attempt_id
""")  # noqa: S608  made of constants, as the next
_SAVED: Final = """
SELECT c.attempt_id, c.step, c.checkpoint_type, c.manifest_digest
  FROM arc_halo.attempt_line(:{0}_run, :{0}_number) AS l
  JOIN arc_halo.model_checkpoints AS c ON c.attempt_id = l.attempt_id AND c.status = 'published'
   AND c.step > l.after_step AND c.step <= l.through_step
 WHERE c.step > :after
"""
_CHECKPOINTS: Final = text(f"""
WITH a AS ({_SAVED.format("a")}), b AS ({_SAVED.format("b")})
SELECT count(*), count(*) FILTER (WHERE a.manifest_digest <> b.manifest_digest),
       min(a.step) FILTER (WHERE a.manifest_digest <> b.manifest_digest)
  FROM a JOIN b USING (step, checkpoint_type)
 WHERE a.attempt_id <> b.attempt_id
""")  # noqa: S608


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What comparing two attempts has shown.

    Attributes
    ----------
    level
        What is proven of the attempt; None where results differ and its provenance is not kept either.
    point_count, checkpoint_count
        How many the two have in common.
    differing_points, differing_checkpoints
        How many of these are not equal, bit for bit.
    first_difference
        The first step at which anything differs; None if nothing does.
    """

    level: Level | None
    point_count: int
    checkpoint_count: int
    differing_points: int
    differing_checkpoints: int
    first_difference: int | None

    @property
    def is_equal(self) -> bool:
        """Nothing differs."""
        return self.first_difference is None


def verify_reproducibility(
    session: Session, attempt: TrainingAttempt | uuid.UUID, against: TrainingAttempt | uuid.UUID
) -> Reproduction:
    """Compare what two attempts logged and saved at the same steps, and note on the first what that proves.

    An attempt that was resumed is compared from its fork on, and proves L2 if it equals one that was not interrupted
    there in at least one checkpoint; one that began anew proves L1 if it equals another. What both have of one ancestor
    does not count. Metrics are compared bit for bit, those of the scope ``system`` not at all; checkpoints by their
    digests, which are over weights, optimizer and random states.

    Raises
    ------
    AttemptLost
        One of them was deleted.
    CheckpointError
        They have no step in common, or are one: there is nothing to compare.

    Examples
    --------
    >>> verify_reproducibility(session, resumed.attempt_id, straight.attempt_id).level  # doctest: +SKIP
    'L2'
    """
    found, other = find_attempt(session, attempt), find_attempt(session, against)
    if found.id == other.id:
        raise CheckpointError(f"attempt {found.id} equals itself; give another attempt, or one of another run")
    parameters = {
        "a_run": found.training_session_id,
        "a_number": found.attempt_number,
        "b_run": other.training_session_id,
        "b_number": other.attempt_number,
        "after": -1 if found.fork_step is None else found.fork_step,
    }
    points, differing_points, first_point = session.execute(_POINTS, parameters).one()
    saved, differing_saved, first_saved = session.execute(_CHECKPOINTS, parameters).one()
    if not points and not saved:
        raise CheckpointError(
            f"attempts {found.id} and {other.id} have no metric and no checkpoint of the same step after step "
            f"{parameters['after']}; let both log and save at the same steps"
        )
    first = min((step for step in (first_point, first_saved) if step is not None), default=None)
    level = _level(found, is_equal=first is None and (found.fork_step is None or saved > 0))
    found.verified_level, found.verified_against_id = level, other.id
    session.flush()
    return Reproduction(level, points, saved, differing_points, differing_saved, first)


def _level(attempt: TrainingAttempt, *, is_equal: bool) -> Level | None:
    if is_equal:
        return "L1" if attempt.fork_step is None else "L2"
    return "L0" if attempt.environment_digest is not None else None

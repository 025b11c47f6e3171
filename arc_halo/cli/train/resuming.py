"""From where a run would go on: the newest full checkpoint of its line, and what was recorded after it."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from arc_halo.cli.output import say, shown

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from arc_halo.schema import ModelCheckpoint
    from arc_halo.training.runs import RunSummary

_OF_RUN: Final = ("status", "attempt_number", "attempt_status", "host", "pid", "heartbeat_age_seconds")
_OF_CHECKPOINT: Final = ("id", "step", "epoch", "published_at", "world_size")


@dataclass(frozen=True, slots=True)
class Resumption:
    """What a next attempt goes on from; without a checkpoint it begins anew."""

    run: RunSummary
    checkpoint: ModelCheckpoint | None
    is_process_gone: bool | None
    """Of a running attempt, as far as this machine can tell; None of one that does not run."""

    @property
    def last_recorded_step(self) -> int | None:
        """Of any metric along the line."""
        return max((each.last_step for each in self.run.metrics.values()), default=None)

    @property
    def steps_again(self) -> int:
        """How many recorded steps are trained again, and are not on the line then."""
        if self.last_recorded_step is None:
            return 0
        return max(0, self.last_recorded_step - (-1 if self.checkpoint is None else self.checkpoint.step))

    @property
    def parts(self) -> dict[str, bool]:
        """What a resume needs beside weights, and whether it is there."""
        checkpoint = self.checkpoint
        return {
            "optimizer": bool(checkpoint and checkpoint.optimizer_groups),
            "random_state": bool(checkpoint and checkpoint.rng_state),
            "data_position": bool(checkpoint and checkpoint.data_loader_state),
        }

    def fields(self) -> dict[str, Any]:
        """As JSON has it."""
        checkpoint = None
        if self.checkpoint is not None:
            checkpoint = {name: getattr(self.checkpoint, name) for name in _OF_CHECKPOINT} | self.parts
        return {
            "run": self.run.run,
            "id": self.run.id,
            **{name: getattr(self.run, name) for name in _OF_RUN},
            "is_process_gone": self.is_process_gone,
            "checkpoint": checkpoint,
            "last_recorded_step": self.last_recorded_step,
            "steps_again": self.steps_again,
        }


def read_resumption(session: Session, reference: str) -> Resumption:
    """Read it, by a fixed number of statements."""
    from arc_halo.training.finding import latest_checkpoint
    from arc_halo.training.naming import find_run
    from arc_halo.training.runs import describe_runs

    found = find_run(session, reference)
    (run,) = describe_runs(session, [found])
    return Resumption(run, latest_checkpoint(session, found, checkpoint_type="full"), _is_process_gone(session, run))


def _is_process_gone(session: Session, run: RunSummary) -> bool | None:
    from sqlalchemy import select

    from arc_halo.schema import TrainingAttempt
    from arc_halo.training.attempts import process_of

    newest = select(TrainingAttempt).where(
        TrainingAttempt.training_session_id == run.id, TrainingAttempt.attempt_number == run.attempt_number
    )
    attempt = session.scalar(newest)
    if attempt is None or attempt.status != "running":
        return None
    process = process_of(attempt)
    return process is not None and process.is_gone()


def print_resumption(found: Resumption) -> None:
    """In sentences."""
    from arc_halo.cli.train.shown import moment

    say((shown(found.run.run), "bold"), f", {_attempt(found.run, is_gone=bool(found.is_process_gone))}")
    if (checkpoint := found.checkpoint) is None:
        say("no full checkpoint on its line: a next attempt begins at the beginning")
    else:
        say(f"goes on from step {checkpoint.step:,}, published {moment(checkpoint.published_at)}, {checkpoint.id}")
        parts = {name.replace("_", " "): has for name, has in found.parts.items()}
        say("with weights, ", ", ".join(name if has else f"no {name}" for name, has in parts.items()))
    if found.steps_again:
        say(f"recorded up to step {found.last_recorded_step:,}: {found.steps_again:,} of these are trained again")


def _attempt(run: RunSummary, *, is_gone: bool) -> str:
    from arc_halo.cli.train.shown import SILENT_SECONDS, duration

    if run.attempt_number is None:
        return "not begun yet"
    if run.attempt_status != "running" or run.heartbeat_age_seconds is None:
        return f"attempt {run.attempt_number} {run.attempt_status}: a next one may begin"
    where = f"on {shown(run.host)}, process {run.pid}" if run.host else "somewhere"
    heard = f"heard of {duration(run.heartbeat_age_seconds)} ago"
    if is_gone:
        gone = "but its process is gone: a next one takes it over at once"
        return f"attempt {run.attempt_number} ran {where}, {heard}, {gone}"
    is_silent = run.heartbeat_age_seconds > SILENT_SECONDS
    may = "it may be taken over" if is_silent else "a next one is refused until it ends or its process is gone"
    return f"attempt {run.attempt_number} runs {where}, {heard}: {may}"

"""What transformers' Trainer keeps of itself, in a checkpoint's extra state; its log is the run's history."""

from __future__ import annotations

import dataclasses
import math
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import text
from transformers.trainer_callback import TrainerState

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Mapping

    from sqlalchemy.orm import Session

    from arc_halo.training.checkpoint import LoadedCheckpoint

TRAINER: Final = "trainer"
"""The key of a checkpoint's extra state that the Trainer's state stands under."""
BEST: Final = "arc-halo:"
"""What names a checkpoint in the database begins with, where transformers would have a path."""
_EVALUATION: Final = "eval_"
_SUMMARY: Final = ("train_", "total_flos")
_OF_CLOCKS: Final = ("_runtime", "_per_second")
_BESIDES: Final = frozenset({"epoch", "step"})

_POINTS: Final = text("""
SELECT s.name, s.scope, p.step, p.epoch, p.value
  FROM arc_halo.training_attempts AS a
  CROSS JOIN LATERAL arc_halo.attempt_line(a.training_session_id, a.attempt_number) AS l
  JOIN arc_halo.metric_series AS s ON s.attempt_id = l.attempt_id AND s.context = '{}'
  JOIN arc_halo.v_training_points AS p
    ON p.series_id = s.id AND p.step > l.after_step AND p.step <= LEAST(l.through_step, :step)
 WHERE a.id = :attempt_id
 ORDER BY p.step, s.name
""")


class Logged(NamedTuple):
    """Values of one scope from one call of ``Trainer.log``."""

    scope: str
    metrics: dict[str, float]


def split_logs(logs: Mapping[str, Any]) -> list[Logged]:
    """Values by scope: of training; of evaluation, without ``eval_``; and times, which no two runs share."""
    scopes: dict[str, dict[str, float]] = {}
    for name, value in logs.items():
        number = value if isinstance(value, Real) else _number(value)
        if number is None or name in _BESIDES:
            continue
        if name.endswith(_OF_CLOCKS):
            scopes.setdefault("system", {})[name] = float(number)
        elif name.startswith(_EVALUATION) and len(name) > len(_EVALUATION):
            scopes.setdefault("validation", {})[name.removeprefix(_EVALUATION)] = float(number)
        else:
            scopes.setdefault("train", {})[name] = float(number)
    return [Logged(scope, metrics) for scope, metrics in scopes.items()]


def _number(value: Any) -> float | None:
    """Of a tensor or an array without axes."""
    return float(value) if getattr(value, "ndim", None) == 0 else None


def join_logs(points: Iterable[tuple[str, str, int, float | None, float]]) -> list[dict[str, Any]]:
    """The entries of ``TrainerState.log_history``, from name, scope, step, epoch and value of points in order."""
    entries: dict[tuple[int, int], dict[str, Any]] = {}
    for name, scope, step, epoch, value in points:
        full = _EVALUATION + name if scope == "validation" else name
        # An evaluation follows the entry of its step, and the summary comes last.
        order = 1 if full.startswith(_EVALUATION) else 2 if full.startswith(_SUMMARY) else 0
        entry = entries.setdefault((step, order), {"step": step})
        entry[full] = value
        if epoch is not None and not math.isnan(epoch):
            entry["epoch"] = epoch
    return [entries[key] for key in sorted(entries)]


def read_log_history(session: Session, attempt_id: uuid.UUID, step: int) -> list[dict[str, Any]]:
    """What the Trainer would have logged up to a step, had it never stopped: the line of an attempt, each step once."""
    return join_logs(session.execute(_POINTS, {"attempt_id": attempt_id, "step": step}))


def describe_trainer(state: Any, **others: Any) -> dict[str, Any]:
    """A `TrainerState` as a tree, without its log, which would grow with every checkpoint."""
    kept = dataclasses.asdict(state)
    kept.pop("log_history")
    return {"state": kept, **others}


def trainer_state(loaded: LoadedCheckpoint, logs: list[dict[str, Any]], batch_size: int = 1) -> dict[str, Any]:
    """The content of ``trainer_state.json``.

    Parameters
    ----------
    batch_size
        Where no Trainer made the checkpoint and said its own.
    """
    kept = (loaded.extra or {}).get(TRAINER, {}).get("state", {})
    known = {each.name for each in dataclasses.fields(TrainerState)}  # another release may have had others
    content: dict[str, Any] = {"train_batch_size": batch_size, "epoch": loaded.epoch or 0.0}
    content |= {name: value for name, value in kept.items() if name in known}
    # What is best has a path of another machine, or a name in the database: no folder where this is read.
    content |= {"global_step": loaded.step, "log_history": logs, "best_model_checkpoint": None}
    return dataclasses.asdict(TrainerState(**content))

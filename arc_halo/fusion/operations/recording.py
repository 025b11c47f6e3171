"""An operation into the database: as a whole, in the caller's transaction, once it is over."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import insert, text

from arc_halo.errors import ConstraintViolation, OperationFailed
from arc_halo.fusion.figures import Figures
from arc_halo.fusion.html import outcome_html
from arc_halo.fusion.operations.receiving import finite, plain_json, plain_text
from arc_halo.schema import FusionOperation, FusionOperationMember, ReactorMetric

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session

    from arc_halo.fusion.operations.calls import Call
    from arc_halo.fusion.operations.operation import Operation
    from arc_halo.fusion.strategies.protocol import Fused

OperationStatus = Literal["completed", "failed", "timed_out", "cancelled"]
_NOW: Final = text("SELECT clock_timestamp()")
_ENSURE: Final = text("SELECT arc_halo.ensure_time_partitions('arc_halo.reactor_metrics', :month, 0)")
_CHECK_VIOLATION: Final = "23514"


@dataclass(frozen=True, slots=True, repr=False)
class Outcome:
    """What came of an operation, as it is stored.

    Attributes
    ----------
    fused
        The joint answer; None where it came to none.
    error
        Why it came to none.
    calls
        All calls of members, in the order of asking.
    seconds
        From the question to the answer, without storing it.
    """

    operation_id: uuid.UUID
    status: OperationStatus
    fused: Fused | None
    error: str | None
    calls: tuple[Call, ...]
    trace: tuple[dict[str, Any], ...]
    seconds: float
    seed: int
    figures: Figures

    @property
    def text(self) -> str:
        """The joint answer.

        Raises
        ------
        OperationFailed
            There is none.
        """
        if self.fused is None:
            raise OperationFailed(f"operation {self.operation_id} {self.status}: {self.error}", self.operation_id)
        return self.fused.text

    @property
    def score(self) -> float | None:
        """How sure the strategy was."""
        return None if self.fused is None else self.fused.score

    @property
    def token_count(self) -> int:
        """Of all questions and answers, as far as members count them."""
        answers = [call.answer for call in self.calls if call.answer is not None]
        return sum((each.prompt_token_count or 0) + (each.generated_token_count or 0) for each in answers)

    @property
    def cached_token_count(self) -> int:
        """Tokens of the questions that a cache spared, as far as members count them."""
        return sum(call.answer.cached_token_count or 0 for call in self.calls if call.answer is not None)

    @property
    def cost(self) -> float:
        """Of all calls, as far as members have prices."""
        return sum(call.answer.cost or 0.0 for call in self.calls if call.answer is not None)

    def __repr__(self) -> str:
        said = [self.status, repr(self.error if self.fused is None else self.fused.text)]
        known = (("score", self.score), ("quality", self.figures.quality), ("gain", self.figures.gain))
        said += [f"{name} {value:.4g}" for name, value in known if value is not None]
        return f"<Outcome {self.operation_id}: {', '.join(said)}, {len(self.calls)} calls, {self.seconds:.3g} s>"

    def _repr_html_(self) -> str:
        return outcome_html(self)


def store_outcome(
    session: Session,
    operation: Operation,
    outcome: Outcome,
    *,
    replay_of: uuid.UUID | None = None,
) -> None:
    """Write an operation with its calls and figures.

    What members said was made such that it can be stored when it came in; questions are here: members get them as they
    are.

    Parameters
    ----------
    replay_of
        The operation that was run again.
    """
    plan, fused, input_vector = operation.plan, outcome.fused, operation.input_vector
    now: dt.datetime = session.execute(_NOW).scalar_one()
    row = {
        "id": outcome.operation_id,
        "reactor_id": plan.id,
        "status": outcome.status,
        "strategy": plan.strategy,
        "config": dict(plan.stored_config),
        "budget": operation.own_budget,
        "graph_version": plan.graph_version,
        "state_version": plan.state_version,
        "seed": outcome.seed,
        "input": plain_json(operation.input.to_json()),
        "output": None if fused is None else _output(operation, fused),
        "trace": list(outcome.trace),
        "score": outcome.score,
        "quality": outcome.figures.quality,
        "error": None if outcome.error is None else plain_text(outcome.error),
        "replay_of": replay_of,
        "input_dimension": None if input_vector is None else len(input_vector),
        "input_vector": input_vector,
        "started_at": now - dt.timedelta(seconds=operation.elapsed_seconds),
        "execution_seconds": outcome.seconds,
    }
    session.execute(insert(FusionOperation), [row])
    if outcome.calls:
        session.execute(insert(FusionOperationMember), [_call(outcome.operation_id, call) for call in outcome.calls])
    if not outcome.figures.is_empty:
        figures = {each.name: getattr(outcome.figures, each.name) for each in fields(Figures)}
        store_metric(
            session, {"reactor_id": plan.id, "operation_id": outcome.operation_id, "recorded_at": now} | figures
        )


def store_metric(session: Session, row: dict[str, Any]) -> None:
    """Write figures; the month's partition is made where there is none yet."""
    try:
        with session.begin_nested():
            session.execute(insert(ReactorMetric), [row])
    except ConstraintViolation as error:
        if error.sqlstate != _CHECK_VIOLATION or error.constraint is not None:
            raise
        session.execute(_ENSURE, {"month": row["recorded_at"]})
        session.execute(insert(ReactorMetric), [row])


def _output(operation: Operation, fused: Fused) -> dict[str, Any]:
    said: dict[str, Any] = {"text": fused.text}
    if fused.member_id is not None:
        said["member"] = next(each.name for each in operation.members if each.id == fused.member_id)
    if fused.details:
        said["details"] = dict(fused.details)
    return said


def _call(operation_id: uuid.UUID, call: Call) -> dict[str, Any]:
    plan, answer = call.member.plan, call.answer
    return {
        "operation_id": operation_id,
        "position": call.position,
        "member_id": plan.id,
        "model_id": plan.model_id,
        "weights_digest": plan.weights_digest,
        "role": plan.role,
        "weight": plan.weight,
        "status": call.status,
        "prompt": plain_json(call.question.to_json()),
        "answer": None if answer is None else answer.to_json(),
        "score": finite(call.score),
        "quality": call.quality,
        "propensity": call.propensity,
        "began_seconds": call.began_seconds,
        "latency_seconds": call.latency_seconds,
        "prompt_token_count": None if answer is None else answer.prompt_token_count,
        "generated_token_count": None if answer is None else answer.generated_token_count,
        "cached_token_count": None if answer is None else answer.cached_token_count,
        "cost": None if answer is None else answer.cost,
        "error": call.error,
    }

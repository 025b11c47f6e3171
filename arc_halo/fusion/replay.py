"""An operation run again: as it is stored, or by its members as they are now; and what came out differently."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from sqlalchemy import select
from sqlalchemy.orm import joinedload

from arc_halo.errors import FusionError, MemberError, MemberTimeout, OperationNotFound
from arc_halo.fusion.comparing import TOLERANCE, difference
from arc_halo.fusion.members.protocol import JOINT, Answer, TokenChoice
from arc_halo.fusion.operations.calls import Input, Member
from arc_halo.fusion.operations.history import find_operation
from arc_halo.fusion.operations.operation import Operation
from arc_halo.fusion.plan import Budget, MemberPlan, ReactorConfig, parsed
from arc_halo.schema import FusionOperation, FusionOperationMember, Model, ReactorModel

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.fusion.members.protocol import Level, Question
    from arc_halo.fusion.operations.calls import Call
    from arc_halo.fusion.operations.recording import Outcome
    from arc_halo.fusion.plan import Plan
    from arc_halo.fusion.reactor import Reactor

Members = Literal["live", "recorded"]
_NO_DECISION: Final = frozenset({"not_measured", "altered"})
"""Kinds of notes that say nothing of how the answer came about."""


@dataclass(frozen=True, slots=True)
class Replay:
    """An operation that was run again, beside the first.

    Attributes
    ----------
    outcome
        Of the new operation, which is stored.
    replay_of
        The first.
    output_is_equal, trace_is_equal
        Whether answer, score and details are the same, and whether all decisions are.
    answers_are_equal
        For each call, in the order of asking: whether the same member was asked the same, and answered the same. As
        long as the longer of both.
    changes
        What is no longer as it was when the first was run, in sentences.
    differences
        What came out differently, in sentences.
    """

    outcome: Outcome
    replay_of: uuid.UUID
    output_is_equal: bool
    trace_is_equal: bool
    answers_are_equal: tuple[bool, ...]
    changes: tuple[str, ...]
    differences: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether everything came out the same."""
        return self.output_is_equal and self.trace_is_equal and all(self.answers_are_equal)


def replay(
    reactor: Reactor,
    operation: uuid.UUID | str,
    *,
    members: Members = "live",
    budget: Budget | None = None,
    tolerance: float = TOLERANCE,
    refuse_changed: bool = False,
) -> Replay:
    """Run an operation again, with the input, seed, strategy, config, budget, and state it had, and compare.

    It is run by those members that were there then, with the roles and weights they had where they were asked. The
    graph, and members that were not asked, are as they are now: `Replay.changes` says where something is no longer
    what it was. The new operation is stored, with ``replay_of``, whatever becomes of it.

    Parameters
    ----------
    reactor
        Opened as for `Reactor.run`; for ``recorded`` its members are not needed.
    operation
        Its id, or four and more of the first characters.
    members
        ``recorded`` answers each call by what is stored for that member and question, ``live`` asks members again. Of
        answers that members wrote together their logits would be needed, which are not stored: those are run live.
    budget
        In the place of the one the first had.
    tolerance
        How far log-probabilities and scores may be apart and count as the same; texts and choices must be equal.
    refuse_changed
        Raise where anything has changed, before anybody is asked.

    Raises
    ------
    OperationNotFound
        The reactor has no such operation.
    FusionError
        It cannot be run again, or something changed and ``refuse_changed`` was given.
    """
    if members not in get_args(Members):
        raise FusionError(f"members are live or recorded, not {members!r:.80}")
    plan = reactor.plan()
    first = reactor.database.read(lambda session: load_operation(session, plan.id, operation))
    if members == "live" and plan.status in ("paused", "retired"):
        raise FusionError(f"the reactor {plan.name} is {plan.status}: replay it with what is recorded, or activate it")
    if members == "recorded" and any(_is_joint(call) for call in first.members):
        raise FusionError(
            f"members wrote the answer of operation {first.id} together, and their logits are not stored: "
            "replay it with members='live'"
        )
    were = reactor.database.read(lambda session: _members_then(session, first))
    changes = tuple(_changes(plan, first, were))
    if changes and refuse_changed:
        raise FusionError(f"operation {first.id} cannot be run as it was: {'; '.join(changes)}")
    again, left_out = _operation(reactor, _plan_then(plan, first, were, members), first, members, budget)
    reactor.prepare(again, left_out)
    outcome = reactor.finish(again, check=False, replay_of=first.id)
    second = reactor.database.read(lambda session: load_operation(session, plan.id, outcome.operation_id))
    return _compared(first, second, outcome, changes, tolerance)


def load_operation(session: Session, reactor_id: uuid.UUID, reference: uuid.UUID | str) -> FusionOperation:
    """An operation of a reactor with its calls, members and vector.

    Raises
    ------
    OperationNotFound
        The reactor has no such operation, or several ids begin so.
    """
    row = find_operation(session, reference)
    if row.reactor_id != reactor_id:
        raise OperationNotFound(f"operation {row.id} is of the reactor {row.reactor.name}")
    session.refresh(row, ["input_vector"])
    return row


def _members_then(session: Session, first: FusionOperation) -> list[ReactorModel]:
    """Members that were there when the operation began, and are enabled or were asked in it."""
    asked = {call.member_id for call in first.members}
    rows = session.scalars(
        select(ReactorModel)
        .options(joinedload(ReactorModel.model))
        .where(ReactorModel.reactor_id == first.reactor_id)
        .order_by(ReactorModel.priority, ReactorModel.name)
    )
    return [row for row in rows if row.id in asked or (row.is_enabled and row.created_at <= first.started_at)]


def _plan_then(plan: Plan, first: FusionOperation, were: Sequence[ReactorModel], members: Members) -> Plan:
    asked = {call.member_id: call for call in first.members}
    return replace(
        plan,
        strategy=first.strategy,
        config=ReactorConfig.of(first.config),
        stored_config=first.config,
        state_version=first.state_version,
        members=tuple(_plan_of(row, asked.get(row.id), members) for row in were),
    )


def _operation(
    reactor: Reactor, plan: Plan, first: FusionOperation, members: Members, budget: Budget | None
) -> tuple[Operation, dict[str, str]]:
    given, seed = Input.of(first.input), 0 if first.seed is None else first.seed
    if budget is None and first.budget is not None:
        budget = parsed(Budget, first.budget, "the budget of then")
    operation: Operation
    if members == "live":
        able, left_out = reactor.opener.open_all(plan)
        operation = Operation(plan, able, given, seed=seed, budget=budget, read=reactor.database.read)
    else:
        calls: dict[uuid.UUID, list[FusionOperationMember]] = {}
        for call in first.members:
            calls.setdefault(call.member_id, []).append(call)
        plan = replace(plan, members=tuple(_able(each, is_asked=each.id in calls) for each in plan.members))
        archived = [each for each in plan.members if each.model_status == "archived"]
        left_out = {each.name: f"{each.model} is archived" for each in archived}
        able = [Member(each, _Recorded(calls.get(each.id, []))) for each in plan.members if each not in archived]
        operation = _RecordedOperation(first, plan, able, given, seed=seed, budget=budget, read=reactor.database.read)
    operation.input_vector, operation.as_of = first.input_vector, first.started_at
    joint = {call.member_id for call in first.members if _is_joint(call)}
    operation.is_measured = any(call.member_id in joint and not _is_joint(call) for call in first.members)
    return operation, left_out


def _is_joint(call: FusionOperationMember) -> bool:
    return JOINT in (call.answer or {}).get("details", {})


def _able(member: MemberPlan, *, is_asked: bool) -> MemberPlan:
    """What is recorded of a model that was archived since can be replayed."""
    return replace(member, model_status=None) if is_asked else member


def _plan_of(row: ReactorModel, call: FusionOperationMember | None, members: Members) -> MemberPlan:
    """As it was asked; who answers is said as it is: for live ones, the version that is the member's now."""
    model: Model | None = row.model
    role, weight = (row.role, row.weight) if call is None else (call.role, call.weight)
    answers = (row.model_id, None if model is None else model.weights_digest)
    if call is not None and members == "recorded":
        answers = (call.model_id, call.weights_digest)
    return MemberPlan(
        id=row.id,
        name=row.name,
        role=role,
        weight=weight,
        priority=row.priority,
        endpoint=row.endpoint,
        config=row.config,
        model_id=answers[0],
        model=None if model is None else f"{model.name}@{model.version}",
        weights_digest=answers[1],
        model_status=None if model is None else model.status,
    )


def _changes(plan: Plan, first: FusionOperation, were: Sequence[ReactorModel]) -> Iterable[str]:
    if plan.strategy != first.strategy:
        yield f"the strategy was {first.strategy}, and is {plan.strategy} now; the replay has the first"
    if plan.stored_config != first.config:
        keys = plan.stored_config.keys() | first.config.keys()
        changed = sorted(key for key in keys if plan.stored_config.get(key) != first.config.get(key))
        yield f"the config has changed ({', '.join(changed)}); the replay has that of then"
    if plan.graph_version != first.graph_version:
        yield f"the graph was at version {first.graph_version}, and is at {plan.graph_version}, which the replay has"
    if first.seed is None:
        yield "the seed is not known; the replay has 0"
    rows = {row.id: row for row in were}
    for call in {call.member_id: call for call in first.members}.values():
        row = rows[call.member_id]
        if call.model_id != row.model_id:
            yield f"{row.name} was another model version than it is now"
        elif call.weights_digest != (None if row.model is None else row.model.weights_digest):
            yield f"the weights of {row.name} have changed"
        if not row.is_enabled:
            yield f"{row.name} is disabled now; in the replay it is not"
        if (call.role, call.weight) != (row.role, row.weight):
            now = f"{row.role} with weight {row.weight:g}"
            yield f"{row.name} was {call.role} with weight {call.weight:g}, and is {now} now; the replay has the first"


class _Recorded:
    """Stands for a member whose answers are recorded; the operation gives them."""

    def __init__(self, calls: Sequence[FusionOperationMember]) -> None:
        self.level: Level = "L" if any(call.answer and call.answer.get("choices") for call in calls) else "T"

    def answer(self, question: Question) -> Answer:
        del question
        raise MemberError("only what is recorded can be asked")


class _RecordedOperation(Operation):
    """Calls are answered by those of another operation: of the same member, with the same question."""

    def __init__(self, first: FusionOperation, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._left = {call.position: call for call in first.members}
        self._left_lock = threading.Lock()

    def answer(self, call: Call) -> Answer:
        """As `Operation.answer`, from the records; what failed then fails now."""
        stored = self._take(call)
        if stored is None:
            raise MemberError("nothing is recorded for this question")
        if stored.answer is not None:
            return _answer_of(stored)
        kind = MemberTimeout if stored.status == "timed_out" else MemberError
        raise kind(stored.error or stored.status)

    def _reason_to_skip(self, call: Call, room: int | None) -> str | None:
        """What was skipped then is skipped now: it may have been for time."""
        stored = self._left.get(call.position)
        if stored is not None and stored.status == "skipped" and stored.member_id == call.member.id:
            return stored.error or "it was skipped"
        return super()._reason_to_skip(call, room)

    def _take(self, call: Call) -> FusionOperationMember | None:
        """Each is given once. The one at the same place first: calls that run at once come here in any order."""
        asked = _plain(call.question.to_json())
        with self._left_lock:
            for position in (call.position, *sorted(self._left)):
                stored = self._left.get(position)
                if stored is not None and stored.member_id == call.member.id and stored.prompt == asked:
                    return self._left.pop(position)
        return None


def _answer_of(stored: FusionOperationMember) -> Answer:
    said = stored.answer or {}
    return Answer(
        said["text"],
        tuple(TokenChoice(*each) for each in said.get("choices", ())),
        said.get("finish_reason", "stop"),
        prompt_token_count=stored.prompt_token_count,
        generated_token_count=stored.generated_token_count,
        cached_token_count=stored.cached_token_count,
        cost=stored.cost,
        details=said.get("details", {}),
    )


def _compared(
    first: FusionOperation, second: FusionOperation, outcome: Outcome, changes: tuple[str, ...], tolerance: float
) -> Replay:
    output = [
        f"the {name} {found}"
        for name in ("output", "score", "status")
        if (found := difference(getattr(first, name), getattr(second, name), tolerance)) is not None
    ]
    decisions = _each_difference(_decisions(first), _decisions(second), tolerance)
    calls = _each_difference(
        [_said(call) for call in first.members], [_said(call) for call in second.members], tolerance
    )
    return Replay(
        outcome,
        first.id,
        output_is_equal=not output,
        trace_is_equal=not any(decisions),
        answers_are_equal=tuple(each is None for each in calls),
        changes=changes,
        differences=(*output, *_told("decision", decisions), *_told("call", calls)),
    )


def _decisions(row: FusionOperation) -> list[dict[str, Any]]:
    return [each for each in row.trace if each.get("kind") not in _NO_DECISION]


def _said(call: FusionOperationMember) -> dict[str, Any]:
    """What is compared of a call. Errors are not: their words may hold times and addresses."""
    return {"member": call.member.name, "prompt": call.prompt, "status": _ending(call), "answer": call.answer}


def _ending(call: FusionOperationMember) -> str:
    return call.status if call.status in ("answered", "skipped") else "no answer"


def _each_difference(before: Sequence[Any], after: Sequence[Any], tolerance: float) -> list[str | None]:
    """One for each place, as many as the longer has."""
    return [difference(one, other, tolerance) for one, other in zip_longest(before, after)]


def _told(what: str, differences: Sequence[str | None]) -> list[str]:
    return [f"{what} {at}: {each}" for at, each in enumerate(differences) if each is not None]


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))

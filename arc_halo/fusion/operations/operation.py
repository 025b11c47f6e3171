"""An operation while it runs: it asks members, in threads and in time, and notes what is decided."""

from __future__ import annotations

import math
import random
import threading
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from arc_halo.errors import FusionError, MemberTimeout
from arc_halo.fusion.members.generating import generate
from arc_halo.fusion.members.protocol import Answer, Answering, Question, Stoppable
from arc_halo.fusion.operations import hanging
from arc_halo.fusion.operations.calls import Call
from arc_halo.fusion.operations.receiving import plain_json, plain_text, received, said_by
from arc_halo.schema.columns import uuid7

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.fusion.operations.calls import CallStatus, Input, Member
    from arc_halo.fusion.plan import Budget, Edge, Plan

    Read = Callable[[Callable[[Session], Any]], Any]
    Listener = Callable[[str, Mapping[str, Any]], None]

_MAX_ABANDONED: Final = 8
"""Calls of one member that nobody waits for any more: with as many, it is not asked again before one has ended."""


class Operation:
    """One question on its way to an answer; strategies ask members through it.

    Attributes
    ----------
    plan
        The reactor as it was when the operation began.
    members
        Enabled members in the order of priority and name.
    random
        The only source of chance of a strategy, seeded by the operation's seed.
    calls
        All calls so far, in the order of asking.
    trace
        What was noted so far.
    input_vector
        Of the prompt, float32 of shape [dimension], where the reactor was given something that makes vectors.
    is_measured
        Whether members that write an answer together are asked alone, too: None before somebody says so.
    as_of
        When the operation began that this one is a replay of: strategies that learn know nothing later.
    """

    def __init__(
        self,
        plan: Plan,
        members: Sequence[Member],
        given: Input,
        *,
        seed: int = 0,
        budget: Budget | None = None,
        listener: Listener | None = None,
        read: Read | None = None,
    ) -> None:
        self.id = uuid7()
        self.plan, self.members, self.input, self.seed = plan, tuple(members), given, seed
        self.budget = plan.config.budget if budget is None else budget
        self.random = random.Random(seed)  # noqa: S311  # for choices that can be repeated
        self.calls: list[Call] = []
        self.trace: list[dict[str, Any]] = []
        self.input_vector: np.ndarray | None = None
        self.is_measured: bool | None = None
        self.as_of: dt.datetime | None = None
        self._listener = listener
        self._read = read
        self._changed = threading.Condition(threading.RLock())  # guards calls, their outcome, and the cancellation
        self._is_cancelled = False
        self._began = time.monotonic()

    @property
    def own_budget(self) -> dict[str, Any] | None:
        """Limits that it was given in the place of the config's; values of JSON, None where they are the config's."""
        if self.budget == self.plan.config.budget:
            return None
        limits = {name: value for name, value in asdict(self.budget).items() if value is not None}
        return {name: value for name, value in limits.items() if math.isfinite(value)}

    @property
    def edges(self) -> tuple[Edge, ...]:
        """The interaction graph; edges of members that are disabled are not among them."""
        known = {member.id for member in self.members}
        return tuple(each for each in self.plan.edges if {each.source_id, each.target_id} <= known)

    @property
    def changed(self) -> threading.Condition:
        """Guards the outcome of calls; notified when one ends, and when the operation is cancelled."""
        return self._changed

    @property
    def elapsed_seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    @property
    def remaining_seconds(self) -> float | None:
        """Of the budget; None without one, 0 where it is used up."""
        return None if self.budget.seconds is None else max(0.0, self.budget.seconds - self.elapsed_seconds)

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody wants the answer any more."""
        return self._is_cancelled

    @property
    def is_out_of_time(self) -> bool:
        """Whether the seconds of the budget are used up."""
        return self.remaining_seconds == 0

    def with_role(self, *roles: str) -> list[Member]:
        """The members in these roles, in their order."""
        return [member for member in self.members if member.role in roles]

    def member(self, name: str) -> Member:
        """The member of a name.

        Raises
        ------
        FusionError
            There is none that is enabled.
        """
        for member in self.members:
            if member.name == name:
                return member
        raise FusionError(f"{self.plan.name} has no enabled member {name!r}; it has {[m.name for m in self.members]}")

    def question(self, prompt: str | None = None, **changes: Any) -> Question:
        """The question as the input and the reactor's config make it; another prompt, or other values, where given."""
        said = dict(self.plan.config.question)
        if self.input.system is not None:
            said["system"] = self.input.system
        said["stop"] = tuple(said.get("stop", ()))
        return Question(prompt=self.input.prompt if prompt is None else prompt, **{"seed": self.seed} | said | changes)

    def read(self, unit: Callable[[Session], Any]) -> Any:
        """Run a unit that reads the database, as `Database.read` does; no member is asked meanwhile.

        Raises
        ------
        FusionError
            The operation has no database, as in a replay of what is written down.
        """
        if self._read is None:
            raise FusionError("this operation has no database to look into")
        return self._read(unit)

    def note(self, kind: str, **details: Any) -> None:
        """Add a decision or an edge that was walked to the trace; values of JSON, names for members, no times."""
        noted = plain_json({"kind": kind} | details)
        with self._changed:
            self.trace.append(noted)
        self._tell("noted", noted)

    def cancel(self) -> None:
        """Nobody wants the answer any more: what is waited for is cancelled, and nothing more is asked."""
        with self._changed:
            self._is_cancelled = True
            self._changed.notify_all()

    def end(self) -> None:
        """It is over: calls that are still waited for are cancelled, and nothing changes any more."""
        with self._changed:
            pending = [call for call in self.calls if call.status is None]
            self._abandon(pending, "cancelled", "the operation was over")
            self._is_cancelled = True

    def ask(self, member: Member, question: Question) -> Call:
        """Ask one member, and wait for it."""
        return self.ask_all([(member, question)])[0]

    def ask_all(self, asked: Iterable[tuple[Member, Question]]) -> list[Call]:
        """Ask several members at once, and wait until each has answered, failed, or used up its time.

        What a member raises is the outcome of its call, not of the operation. Nothing is asked that the budget has no
        room for: such calls are skipped, and the others share the tokens that are left. Calls of one object of level N
        are made one after another, whichever members it answers for.
        """
        wanted = list(asked)
        rooms = shared_room(self._room(), [question.max_tokens for _, question in wanted])
        calls = [self._begin(member, question, room) for (member, question), room in zip(wanted, rooms, strict=True)]
        lines: dict[int, list[Call]] = {}
        for call in calls:
            if call.status is None:
                lines.setdefault(id(call.member.answerer if call.member.takes_turns else call), []).append(call)
        for line in lines.values():
            name = f"arc-halo-{line[0].member.name}"
            threading.Thread(target=self._run_line, args=(line,), name=name, daemon=True).start()
        self._wait(calls)
        return calls

    def spent(self) -> tuple[int, float]:
        """Tokens and cost of all calls so far, as far as members count them."""
        with self._changed:
            answers = [call.answer for call in self.calls if call.answer is not None]
        tokens = sum((each.prompt_token_count or 0) + (each.generated_token_count or 0) for each in answers)
        return tokens, sum(each.cost or 0.0 for each in answers)

    def begin_call(self, member: Member, question: Question) -> Call:
        """A call that the strategy makes itself, as by logits; `end_call` says what came of it."""
        return self._begin(member, question, self._room())

    def end_call(
        self, call: Call, status: CallStatus, *, answer: Answer | None = None, error: str | None = None
    ) -> bool:
        """Say what came of a call; False if that was said already, and stays.

        What of an answer cannot be stored, or worked with, is replaced or left out, and noted: see `received`.

        Raises
        ------
        MemberError
            The answer is none.
        """
        noted: dict[str, Any] = {}
        if status == "answered":
            answer, altered = received(answer)
            if altered:
                noted = {"kind": "altered", "member": call.member.name, "position": call.position, "what": altered}
        with self._changed:
            if call.status is not None:
                return False
            call.status, call.answer, call.error = status, answer, None if error is None else plain_text(error)
            call.latency_seconds = self.elapsed_seconds - call.began_seconds
            if noted:  # before anybody who waits goes on, and ends the operation
                self.trace.append(noted)
            self._changed.notify_all()
        self._tell(status, {"position": call.position, "member": call.member.name, "error": call.error})
        if noted:
            self._tell("noted", noted)
        return True

    def answer(self, call: Call) -> Answer:
        """What the member of a call answers; called in the call's own thread."""
        inner = call.member.inner
        # What a member can do itself comes first: it knows its caches, and what they spared.
        if isinstance(inner, Stoppable):
            return inner.answer_while(call.question, lambda: call.status is None)
        if isinstance(inner, Answering):
            return inner.answer(call.question)
        return generate(inner, call.question, is_wanted=lambda: call.status is None)

    def _room(self) -> int | None:
        """Tokens that the budget leaves; None for as many as anybody wants."""
        return None if self.budget.tokens is None else max(0, self.budget.tokens - self.spent()[0])

    def _begin(self, member: Member, question: Question, room: int | None) -> Call:
        with self._changed:
            call = Call(len(self.calls), member, question, began_seconds=self.elapsed_seconds)
            self.calls.append(call)
        reason = self._reason_to_skip(call, room)
        if reason is not None:
            self.end_call(call, "skipped", error=reason)
            return call
        if room is not None and question.max_tokens > room:
            call.question = replace(question, max_tokens=room)
        self._tell("asked", {"position": call.position, "member": member.name})
        return call

    def _reason_to_skip(self, call: Call, room: int | None) -> str | None:
        cost = self.spent()[1]
        if self._is_cancelled:
            return "the operation was cancelled"
        if self.is_out_of_time:
            return f"the budget of {self.budget.seconds} seconds is used up"
        if room == 0:
            return f"the budget of {self.budget.tokens} tokens is used up"
        if self.budget.cost is not None and cost >= self.budget.cost:
            return f"the budget of {self.budget.cost} is used up"
        if hanging.count_of(call.member.answerer) >= _MAX_ABANDONED:
            return f"{_MAX_ABANDONED} calls of it hang"
        return None

    def _run_line(self, line: Sequence[Call]) -> None:
        """In a thread of its own: what a member does cannot be stopped from outside."""
        for at, call in enumerate(line):
            with self._changed:
                is_wanted = call.status is None
                if is_wanted and at > 0:  # time in the line is not the member's, as long as the line moves
                    for each in line[at:]:
                        each.began_seconds = self.elapsed_seconds
            if is_wanted:
                self._run(call)
            else:
                hanging.forget(call.member.answerer)

    def _run(self, call: Call) -> None:
        try:
            is_new = self.end_call(call, "answered", answer=self.answer(call))
        except MemberTimeout as error:
            is_new = self.end_call(call, "timed_out", error=said_by(error).removeprefix("MemberTimeout: "))
        except BaseException as error:  # noqa: BLE001  # of somebody else's code, in a thread of its own: its outcome
            is_new = self.end_call(call, "failed", error=said_by(error))
        if not is_new:
            hanging.forget(call.member.answerer)

    def _wait(self, calls: Sequence[Call]) -> None:
        limit = self.plan.config.member_seconds
        with self._changed:
            while pending := [call for call in calls if call.status is None]:
                if self._is_cancelled:
                    self._abandon(pending, "cancelled", "the operation was cancelled")
                    return
                left = [limit - (self.elapsed_seconds - call.began_seconds) for call in pending]
                if self.remaining_seconds is not None:
                    left = [min(each, self.remaining_seconds) for each in left]
                late = [call for call, seconds in zip(pending, left, strict=True) if seconds <= 0]
                if late:
                    self._abandon(late, "timed_out", None)
                else:
                    self._changed.wait(min(*left, threading.TIMEOUT_MAX))

    def _abandon(self, calls: Sequence[Call], status: CallStatus, error: str | None) -> None:
        for call in calls:
            waited = self.elapsed_seconds - call.began_seconds
            if self.end_call(call, status, error=error or f"no answer within {waited:.3g} seconds"):
                hanging.abandon(call.member.answerer)

    def _tell(self, kind: str, details: Mapping[str, Any]) -> None:
        if self._listener is not None:
            self._listener(kind, details)


def shared_room(room: int | None, wanted: Sequence[int]) -> list[int | None]:
    """How many tokens each of several calls may have of those that are left: what it wants, or an even share.

    Examples
    --------
    >>> shared_room(100, [256, 20, 256]), shared_room(2, [9, 9, 9]), shared_room(None, [9])
    ([40, 20, 40], [1, 1, 0], [None])
    """
    if room is None:
        return [None] * len(wanted)
    shares: list[int | None] = [0] * len(wanted)
    by_want = sorted(range(len(wanted)), key=lambda each: wanted[each])  # who wants less leaves more to the others
    for number, place in enumerate(by_want):
        share = min(wanted[place], -(-room // (len(wanted) - number)))
        shares[place] = share
        room -= share
    return shares

"""Members of level N side by side: each predicts the next token of one joint answer, in a thread of its own.

A member's whole part is one call. It is left as soon as it raises, or has used up ``member_seconds`` of its own time
(waiting for others is not counted); the others go on.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from contextlib import ExitStack, nullcontext
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from arc_halo.errors import OperationFailed
from arc_halo.fusion.members.generating import checked_logits, whole_prompt
from arc_halo.fusion.members.protocol import JOINT, Answer, Predicting, TokenChoice
from arc_halo.fusion.operations import hanging
from arc_halo.fusion.operations.receiving import said_by
from arc_halo.fusion.pools import LEAST_LOG_PROBABILITY
from arc_halo.fusion.unions import Vocabulary, best_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    from arc_halo.fusion.members.protocol import Question
    from arc_halo.fusion.operations.calls import Call, CallStatus, Member
    from arc_halo.fusion.operations.operation import Operation


class Lane:
    """One member, its thread, and its part of the joint answer.

    Attributes
    ----------
    call
        What is stored of it; it has ended once ``call.status`` is not None.
    vocabulary
        Of the member, once it has begun.
    token_ids
        The question's tokens and the answer's, as the member knows them.
    logits
        Of the next token, float32 of shape [vocabulary]; perhaps a buffer that the member overwrites.
    choices
        Tokens of the joint answer, with this member's probabilities.
    spare_count
        Tokens that it gave and that did not become any of the answer.
    """

    def __init__(self, call: Call, changed: threading.Condition, turn: threading.Lock | None = None) -> None:
        self.call, self.inner = call, cast("Predicting", call.member.inner)
        self.vocabulary = Vocabulary((), frozenset())
        self.token_ids: list[int] = []
        self.prompt_count = 0
        self.logits = np.empty(0, np.float32)
        self.choices: list[TokenChoice] = []
        self.spare_count = 0
        self.is_busy = False
        self.error: str | None = None
        self.result: Any = None
        self._seconds = self._began = 0.0
        self._changed = changed
        self._turn = turn  # of those that one object answers for
        self._jobs: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()

    @property
    def is_open(self) -> bool:
        """Whether it still takes part."""
        return self.call.status is None

    @property
    def text(self) -> str:
        """The answer so far, as the member's tokens spell it; asks the member, so only for `Predictions.run`."""
        return self.inner.decode(self.token_ids[self.prompt_count :])

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._work, name=f"arc-halo-{self.call.member.name}", daemon=True).start()

    def submit(self, job: Callable[[], Any] | None) -> None:
        """Give the thread something to do, or None to end it."""
        if job is not None:
            self.is_busy, self._began = True, time.monotonic()
        self._jobs.put(job)

    def seconds(self) -> float:
        """The member's own time so far."""
        return self._seconds + (time.monotonic() - self._began if self.is_busy else 0.0)

    def begin(self) -> None:
        """Read the question; asks the member."""
        self.vocabulary = Vocabulary(self.inner.vocabulary, frozenset(self.inner.end_ids))
        self.token_ids = list(self.inner.encode(whole_prompt(self.call.question)))
        self.prompt_count = len(self.token_ids)

    def predict(self) -> None:
        """The logits of the next token; asks the member."""
        logits = checked_logits(self.inner, self.inner.next_logits(self.token_ids))
        self.logits = logits if self._turn is None else logits.copy()

    def append(self, token_id: int, log_normalizer: float) -> None:
        """Go on with a token that the logits are known of."""
        text, top = self.vocabulary.texts, {}
        if (count := self.call.question.top_count) > 0:
            ordered = best_ids(self.logits, count).tolist()
            top = {text[each]: _finite(float(self.logits[each]) - log_normalizer) for each in ordered}
        self.choices.append(TokenChoice(text[token_id], _finite(float(self.logits[token_id]) - log_normalizer), top))
        self.token_ids.append(token_id)

    def append_text(self, text: str, log_probability: float, joint: str) -> None:
        """Go on with a text, by its token or, where there is none, by the tokens of the whole; may ask the member."""
        self.choices.append(TokenChoice(text, _finite(log_probability)))
        token_id = self.vocabulary.ids.get(text)
        if token_id is not None:
            self.token_ids.append(token_id)
        else:
            self.token_ids = list(self.inner.encode(whole_prompt(self.call.question) + joint))

    def answer(self, text: str, finish_reason: str) -> Answer:
        """The joint answer as this member's part."""
        return Answer(
            text,
            tuple(self.choices),
            finish_reason,
            prompt_token_count=self.prompt_count,
            generated_token_count=len(self.choices) + self.spare_count,
            details={JOINT: True},
        )

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            result, error = None, None
            try:
                with self._turn or nullcontext():
                    if self.is_open:
                        result = job()
            except BaseException as raised:  # noqa: BLE001  # of somebody else's code: it is the outcome of the call
                error = said_by(raised)
            with self._changed:
                if not self.is_open:  # it was abandoned meanwhile
                    hanging.forget(self.inner)
                    return
                self._seconds = self.seconds()
                self.is_busy, self.result, self.error = False, result, error
                self._changed.notify_all()


class Predictions:
    """Several members that predict side by side; calls still open at the end of the context are cancelled.

    Parameters
    ----------
    operation
        Whose budget and cancellation are kept to, between tokens and while members are waited for.
    members
        All of level N.
    question
        Its ``max_tokens`` are of the joint answer.

    Attributes
    ----------
    calls
        One for each member, in their order; those that the budget has no room for are skipped.
    """

    def __init__(self, operation: Operation, members: Sequence[Member], question: Question) -> None:
        self._operation = operation
        self.calls = [operation.begin_call(member, question) for member in members]
        asked = [call for call in self.calls if call.status is None]
        counts = Counter(id(call.member.inner) for call in asked)
        turns = {each: threading.Lock() for each, count in counts.items() if count > 1}
        self._all = [Lane(call, operation.changed, turns.get(id(call.member.inner))) for call in asked]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.push(self)  # also where the beginning fails
            for lane in self._all:
                lane.start()
            self.run({lane: lane.begin for lane in self._all})
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        operation = self._operation
        status: CallStatus = "timed_out" if operation.is_out_of_time and not operation.is_cancelled else "cancelled"
        for lane in self.lanes:
            self._end(lane, status, "the joint answer was given up")
        for lane in self._all:
            lane.submit(None)

    @property
    def lanes(self) -> list[Lane]:
        """Those that still take part, in the order of the members."""
        return [lane for lane in self._all if lane.is_open]

    @property
    def max_tokens(self) -> int:
        """Of the joint answer: what the question and the budget leave to each member."""
        return min(lane.call.question.max_tokens for lane in self.lanes)

    def room(self, wanted: int) -> int:
        """Of so many more tokens of the joint answer, those that the budget has room for, each member counting them."""
        limit, lanes = self._operation.budget.tokens, self.lanes
        if limit is None:
            return wanted
        own = sum(lane.prompt_count + len(lane.choices) + lane.spare_count for lane in lanes)
        return max(0, min(wanted, (limit - self._operation.spent()[0] - own) // len(lanes)))

    def predict(self) -> list[Lane]:
        """Have all predict the next token; those that could.

        Raises
        ------
        OperationFailed
            None could, or the operation is cancelled or out of time.
        """
        self.run({lane: lane.predict for lane in self.lanes})
        return self.lanes

    def run(self, jobs: Mapping[Lane, Callable[[], Any]]) -> None:
        """Have members do something in their threads, and wait; `Lane.result` is what came of it.

        Raises
        ------
        OperationFailed
            No member is left, or the operation is cancelled or out of time.
        """
        with self._operation.changed:
            for lane, job in jobs.items():
                lane.submit(job)
            self._wait(list(jobs))
        for lane in jobs:
            if lane.is_open and lane.error is not None:
                self._end(lane, "failed", lane.error)
        if self._operation.is_cancelled:
            raise OperationFailed("the operation was cancelled")
        if self._operation.is_out_of_time:
            raise OperationFailed(f"the budget of {self._operation.budget.seconds} seconds is used up")
        if not self.lanes:
            raise OperationFailed("no member could predict to the end")

    def finish(self, text: str, finish_reason: str) -> None:
        """The joint answer is the answer of all that still take part."""
        for lane in self.lanes:
            self._operation.end_call(lane.call, "answered", answer=lane.answer(text, finish_reason))

    def _wait(self, lanes: Sequence[Lane]) -> None:
        operation, limit = self._operation, self._operation.plan.config.member_seconds
        while busy := [lane for lane in lanes if lane.is_open and lane.is_busy]:
            if operation.is_cancelled:
                return  # `__exit__` ends the calls
            left = [limit - lane.seconds() for lane in busy]
            if operation.remaining_seconds is not None:
                left = [min(each, operation.remaining_seconds) for each in left]
            late = [lane for lane, seconds in zip(busy, left, strict=True) if seconds <= 0]
            for lane in late:
                self._end(lane, "timed_out", f"no prediction within {lane.seconds():.3g} seconds of its own")
            if not late:
                operation.changed.wait(min(*left, threading.TIMEOUT_MAX))

    def _end(self, lane: Lane, status: CallStatus, error: str) -> None:
        with self._operation.changed:
            if self._operation.end_call(lane.call, status, error=error) and lane.is_busy:
                hanging.abandon(lane.inner)


def _finite(log_probability: float) -> float:
    return max(log_probability, LEAST_LOG_PROBABILITY) if not math.isnan(log_probability) else LEAST_LOG_PROBABILITY

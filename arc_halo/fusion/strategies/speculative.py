"""A quick member drafts tokens, a slow one verifies them: its own answer, sooner."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from arc_halo.errors import FusionError, OperationFailed
from arc_halo.fusion.members.generating import checked_logits, choose, cut_at_stop, probabilities_at
from arc_halo.fusion.members.protocol import Verifying
from arc_halo.fusion.operations.predictions import Predictions
from arc_halo.fusion.strategies.protocol import Fused, Strategy

if TYPE_CHECKING:
    from arc_halo.fusion.operations import Call, Member, Operation
    from arc_halo.fusion.operations.predictions import Lane


class _Drafted(NamedTuple):
    token_id: int
    logits: np.ndarray
    """Of the drafter, from which the token was taken."""


@dataclass(frozen=True)
class Speculative(Strategy):
    """Draft and verify (Leviathan, Kalman & Matias, 2023; Chen et al., 2023).

    A drafted token with probability q under the drafter and p under the verifier is taken with probability min(1, p/q);
    at the first that is not, one is drawn from max(0, p - q), normalised. Tokens are then distributed as the verifier's
    own, and at temperature 0 they are its own. Both must have the same vocabulary.

    The member in the role drafter drafts, the first primary one verifies; where the drafter fails, the other goes on
    alone.

    Attributes
    ----------
    draft_tokens
        How many are drafted at a time.
    """

    name: ClassVar[str] = "speculative"

    draft_tokens: int = 4

    def __post_init__(self) -> None:
        if self.draft_tokens < 1:
            raise FusionError(f"at least one token is drafted at a time, not {self.draft_tokens}")

    def fuse(self, operation: Operation) -> Fused:
        """As `Strategy.fuse`."""
        drafter, verifier = _pair(operation)
        question = operation.question()
        with Predictions(operation, [drafter, verifier], question) as predictions:
            random = np.random.default_rng(operation.random.getrandbits(64))
            writing = _Writing(predictions, predictions.calls[1], question.temperature, random, self.draft_tokens)
            finish, text = writing.write(question.stop)
            predictions.finish(text, finish)
        for call in predictions.calls:
            if call.answer is None:
                operation.note("left_out", member=call.member.name, position=call.position, status=call.status)
        operation.note("speculated", drafted=writing.drafted, accepted=writing.accepted, passes=writing.passes)
        call = predictions.calls[1]
        mean = None if call.answer is None else call.answer.mean_log_probability
        call.score = None if mean is None else math.exp(mean)
        details = {"drafted": writing.drafted, "accepted": writing.accepted, "passes": writing.passes}
        return Fused(text, call.score, verifier.id, details)


def _pair(operation: Operation) -> tuple[Member, Member]:
    drafters, verifiers = operation.with_role("drafter"), operation.with_role("primary")
    if not drafters or not verifiers:
        raise FusionError(f"{operation.plan.name} needs a member in the role drafter and a primary one")
    unable = [member.name for member in (drafters[0], verifiers[0]) if member.level != "N"]
    if unable:
        raise FusionError(f"to draft and to verify takes logits (level N); {', '.join(unable)} give none")
    return drafters[0], verifiers[0]


@dataclass
class _Writing:
    """The answer so far."""

    predictions: Predictions
    call: Call
    temperature: float
    random: np.random.Generator
    draft_tokens: int
    text: str = ""
    count: int = 0
    drafted: int = 0
    accepted: int = 0
    passes: int = field(default=0)
    """Of the verifier: as many as it would have needed tokens without a draft."""

    def write(self, stop: tuple[str, ...]) -> tuple[str, str]:
        """Why the answer ended, and its text."""
        lanes = self.predictions.lanes
        if len(lanes) == 2 and not lanes[0].vocabulary.is_same_as(lanes[1].vocabulary):  # noqa: PLR2004  # both
            raise FusionError("drafter and verifier must have the same vocabulary: pool them in its place")
        limit = self.predictions.max_tokens
        while room := self.predictions.room(limit - self.count):
            verifier = self._verifier()
            before = len(verifier.token_ids)
            ended = self._pass(verifier, room)
            self.count += len(verifier.token_ids) - before
            self.predictions.run({verifier: partial(getattr, verifier, "text")})
            self.text = self._verifier().result
            if (stopped := cut_at_stop(self.text, stop)) is not None:
                return "stop", stopped
            if ended:
                return "stop", self.text
        if not self.count:
            raise OperationFailed("the budget has no room for a token of each member")
        return "length", self.text

    def _verifier(self) -> Lane:
        for lane in self.predictions.lanes:
            if lane.call is self.call:
                return lane
        raise OperationFailed(f"{self.call.member.name}, who verifies, gave no answer: {self.call.error}")

    def _pass(self, verifier: Lane, room: int) -> bool:
        """One pass of the verifier, with as many tokens as come of it; True at the end of the answer."""
        drafter = next((lane for lane in self.predictions.lanes if lane.call is not self.call), None)
        drafted: list[_Drafted] = []
        if drafter is not None and room > 1:
            self.predictions.run({drafter: partial(self._draft, drafter, min(self.draft_tokens, room - 1))})
            if drafter.is_open:
                drafted = drafter.result
        self.predictions.run({verifier: partial(_verify, verifier, [each.token_id for each in drafted])})
        verifier = self._verifier()
        logits, ends = verifier.result, verifier.vocabulary.end_ids
        self.passes += 1
        self.drafted += len(drafted)
        if drafter is not None:
            drafter.spare_count += len(drafted)  # less those that become tokens of its answer
        for place, each in enumerate(drafted):
            token_id = self._accept(each, logits[place])
            self.accepted += token_id == each.token_id
            if token_id in ends:
                return True
            _append(verifier, token_id, logits[place])
            if drafter is not None:
                _append(drafter, token_id, each.logits)
                drafter.spare_count -= 1
            if token_id != each.token_id:
                return False
        token_id = choose(logits[-1], self.temperature, self.random)
        if token_id in ends:
            return True
        _append(verifier, token_id, logits[-1])
        if drafter is not None and drafter.is_open:
            drafter.token_ids.append(token_id)  # it was not asked about this one
        return False

    def _draft(self, lane: Lane, count: int) -> list[_Drafted]:
        """Tokens of the drafter, up to the end of the answer; asks the member."""
        token_ids, drafted = list(lane.token_ids), []
        for _ in range(count):
            logits = checked_logits(lane.inner, lane.inner.next_logits(token_ids)).copy()
            token_id = choose(logits, self.temperature, self.random)
            drafted.append(_Drafted(token_id, logits))
            token_ids.append(token_id)
            if token_id in lane.vocabulary.end_ids:
                break
        return drafted

    def _accept(self, drafted: _Drafted, logits: np.ndarray) -> int:
        """The drafted token, or another one in its place."""
        if self.temperature == 0:
            return int(logits.argmax())
        ours, theirs = (probabilities_at(each, self.temperature) for each in (logits, drafted.logits))
        if self.random.random() * theirs[drafted.token_id] < ours[drafted.token_id]:
            return drafted.token_id
        rest = np.maximum(ours - theirs, 0)
        total = rest.sum()
        if total == 0:  # they are equal but for rounding
            return drafted.token_id
        return int(self.random.choice(len(rest), p=rest / total))


def _verify(lane: Lane, drafted: list[int]) -> list[np.ndarray]:
    """Logits at each place of a draft and after it; asks the member."""
    token_ids, first = [*lane.token_ids, *drafted], len(lane.token_ids)
    if isinstance(lane.inner, Verifying):
        rows = lane.inner.each_next_logits(token_ids, first)
        return [checked_logits(lane.inner, each) for each in rows]
    ends = range(first, len(token_ids) + 1)
    return [checked_logits(lane.inner, lane.inner.next_logits(token_ids[:end])).copy() for end in ends]


def _append(lane: Lane, token_id: int, logits: np.ndarray) -> None:
    lane.logits = logits
    largest = float(logits.max())
    lane.append(token_id, largest + math.log(float(np.exp(logits - largest).sum())))

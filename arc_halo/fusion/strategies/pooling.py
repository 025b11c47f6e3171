"""One answer of several members of level N, token by token, by an opinion pool."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from arc_halo.errors import FusionError, OperationFailed
from arc_halo.fusion.members.generating import choose, cut_at_stop
from arc_halo.fusion.operations.predictions import Predictions
from arc_halo.fusion.pools import pooled_coherence
from arc_halo.fusion.strategies.protocol import Fused
from arc_halo.fusion.unions import END, to_union

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arc_halo.fusion.operations.calls import Call, Member
    from arc_halo.fusion.operations.operation import Operation
    from arc_halo.fusion.operations.predictions import Lane
    from arc_halo.fusion.pools import Pool


@dataclass
class _Joint:
    """The joint answer so far."""

    predictions: Predictions
    pool: Pool
    count: int
    temperature: float
    random: np.random.Generator
    is_union: bool
    text: str = ""
    log_probabilities: list[float] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)  # sums over tokens, by member
    coherences: list[float] = field(default_factory=list)

    def step(self) -> bool:
        """One token more; False at the end of the answer."""
        lanes = self.predictions.predict()
        return self._step_in_union(lanes) if self.is_union else self._step(lanes)

    def _step(self, lanes: Sequence[Lane]) -> bool:
        token_id, normalizers = self._choose(lanes, [lane.logits for lane in lanes])
        if token_id in lanes[0].vocabulary.end_ids:
            return False
        for lane, normalizer in zip(lanes, normalizers, strict=True):
            lane.append(token_id, normalizer)
        while lanes := self.predictions.lanes:
            # One spells it for all; the next one where that fails.
            self.predictions.run({lanes[0]: partial(getattr, lanes[0], "text")})
            if lanes[0].is_open:
                self.text = lanes[0].result
                break
        return True

    def _step_in_union(self, lanes: Sequence[Lane]) -> bool:
        texts, shares = to_union([lane.vocabulary for lane in lanes], [lane.logits for lane in lanes], self.count)
        chosen, _ = self._choose(lanes, list(shares))
        if texts[chosen] == END:
            return False
        self.text += texts[chosen]
        jobs = {
            lane: partial(lane.append_text, texts[chosen], float(share[chosen]), self.text)
            for lane, share in zip(lanes, shares, strict=True)
        }
        # To pass it to a thread costs more than to do it, where no member is asked.
        for lane in [lane for lane in jobs if texts[chosen] in lane.vocabulary.ids]:
            jobs.pop(lane)()
        if jobs:
            self.predictions.run(jobs)
        return True

    def _choose(self, lanes: Sequence[Lane], logits: list[np.ndarray]) -> tuple[int, tuple[float, ...]]:
        given = [lane.call.member.weight for lane in lanes]
        pooled = self.pool(logits, given)
        if (coherence := pooled_coherence(logits, pooled.log_normalizers, given)) is not None:
            self.coherences.append(coherence)
        for lane, weight in zip(lanes, pooled.weights, strict=True):
            name = lane.call.member.name
            self.weights[name] = self.weights.get(name, 0.0) + weight
        chosen = choose(pooled.log_probabilities, self.temperature, self.random)
        self.log_probabilities.append(float(pooled.log_probabilities[chosen]))
        return chosen, pooled.log_normalizers


def pool_answers(operation: Operation, members: Sequence[Member], pool: Pool, *, top_count: int) -> Fused:
    """Have members write one answer together.

    Coherence is the mean of that of the distributions at each token, weighted as the members are.

    The score is the geometric mean of the joint tokens' probabilities (with that of the end), the score of a call that
    of the same tokens' under the member.

    Parameters
    ----------
    top_count
        How many tokens each member brings in where vocabularies differ.

    Raises
    ------
    FusionError
        A member is not of level N.
    OperationFailed
        No member could predict to the end, or there is no room for an answer.
    """
    unable = [member.name for member in members if member.level != "N"]
    if unable:
        raise FusionError(f"pools need members that give logits (level N); {', '.join(unable)} do not")
    question = operation.question()
    with Predictions(operation, members, question) as predictions:
        first, *others = predictions.lanes
        is_union = not all(first.vocabulary.is_same_as(lane.vocabulary) for lane in others)
        random = np.random.default_rng(operation.random.getrandbits(64))
        joint = _Joint(predictions, pool, top_count, question.temperature, random, is_union)
        finish, text = _write(joint, question.stop)
        predictions.finish(text, finish)
    return _fused(operation, joint, predictions.calls, text)


def _write(joint: _Joint, stop: tuple[str, ...]) -> tuple[str, str]:
    """Why the answer ended, and its text."""
    limit, tokens = joint.predictions.max_tokens, 0
    while tokens < limit and joint.predictions.room(1):
        if not joint.step():
            return "stop", joint.text
        tokens += 1
        if (stopped := cut_at_stop(joint.text, stop)) is not None:
            return "stop", stopped
    if not tokens:
        raise OperationFailed("the budget has no room for a token of each member")
    return "length", joint.text


def _fused(operation: Operation, joint: _Joint, calls: Sequence[Call], text: str) -> Fused:
    steps = len(joint.log_probabilities)
    for call in calls:
        if call.answer is None:
            operation.note("left_out", member=call.member.name, position=call.position, status=call.status)
        elif (mean := call.answer.mean_log_probability) is not None:
            call.score = math.exp(mean)
    weights = {name: round(total / steps, 6) for name, total in joint.weights.items()}
    vocabularies = "union" if joint.is_union else "same"
    operation.note("pooled", tokens=steps, vocabularies=vocabularies, weights=weights)
    score = math.exp(math.fsum(joint.log_probabilities) / steps)
    details: dict[str, Any] = {"vocabularies": vocabularies, "weights": weights}
    if joint.coherences:
        details["coherence"] = math.fsum(joint.coherences) / len(joint.coherences)
    return Fused(text, score, details=details)

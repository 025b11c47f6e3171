"""Members answer the same question, and a rule makes one answer: votes, rankings, marks, or pools of next tokens.

Votes over samples are self-consistency (Wang et al. 2023, Self-Consistency Improves Chain of Thought Reasoning in
Language Models, arXiv:2203.11171); the rules for rankings are in `rankings`, those for distributions in `pools`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from arc_halo.errors import FusionError, OperationFailed
from arc_halo.fusion.members.protocol import SCORES
from arc_halo.fusion.pools import Gate, Pool, PoolMethod
from arc_halo.fusion.rankings import borda, copeland, ranks_of_order
from arc_halo.fusion.strategies.agreement import (
    agreements,
    check_expression,
    first_of_best,
    note_left_out,
    weights_that_count,
)
from arc_halo.fusion.strategies.asking import answering, ask_samples, judges
from arc_halo.fusion.strategies.judging import MARK_TEMPLATE, ORDER_TEMPLATE, ask_marks, ask_order
from arc_halo.fusion.strategies.pooling import pool_answers
from arc_halo.fusion.strategies.protocol import Fused, Strategy
from arc_halo.fusion.strategies.scoring import ScoringMember
from arc_halo.fusion.strategies.templates import check_places

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arc_halo.fusion.members.protocol import Predicting
    from arc_halo.fusion.operations.calls import Call
    from arc_halo.fusion.operations.operation import Operation
    from arc_halo.fusion.strategies.agreement import Agreement

Method = Literal["vote", "borda", "copeland", "best_of_n", "linear_pool", "log_pool", "gated"]
_RULES = {"borda": borda, "copeland": copeland}


@dataclass(frozen=True)
class Ensemble(Strategy):
    """One answer of the primary and secondary members; of equal ones that of first priority.

    Attributes
    ----------
    method
        ``vote``: the answer with most weight. ``borda``, ``copeland``: rankings of all different answers.
        ``best_of_n``: the answer with the best mark. ``linear_pool``, ``log_pool``, ``gated``: one answer, token by
        token, of members of level N.
    samples, temperature
        Answers of each member, and how they are drawn where there are several; each has its share of the member's
        weight. Not of pools.
    extract
        What of an answer is compared with others: see `agreement.normalized`.
    rank_by
        ``judges``: members in the roles judge and validator give an order. ``members``: those of level N order all
        answers by the mean log-probability that they give their tokens. ``auto``: judges, if there are any.
    mark_by
        Of ``best_of_n``: ``judges`` give a number from 0 to 10, or ``log_probability``, the geometric mean of the
        tokens' probabilities, of answers that come with them. ``auto`` as above.
    gate, gated_pool
        Of ``gated``: how sure a member is, and which pool its weight, times that, is for.
    normalize
        Of ``log_pool``: whether weights are scaled to sum to 1, or are taken as they are, as fitted ones should be.
    top_count
        Of pools: tokens that each member brings in where vocabularies differ.
    order_template
        What judges are asked for an order: ``{question}``, ``{answers}`` (numbered), ``{count}``.
    mark_template
        What judges are asked for a mark: ``{question}``, ``{answer}``.
    """

    name: ClassVar[str] = "ensemble"

    method: Method = "vote"
    samples: int = 1
    temperature: float = 0.7
    extract: str | None = None
    rank_by: Literal["auto", "judges", "members"] = "auto"
    mark_by: Literal["auto", "judges", "log_probability"] = "auto"
    gate: Gate = "entropy"
    gated_pool: PoolMethod = "linear"
    normalize: bool = True
    top_count: int = 64
    order_template: str = ORDER_TEMPLATE
    mark_template: str = MARK_TEMPLATE

    def __post_init__(self) -> None:
        check_expression(self.extract)
        check_places("order_template", self.order_template, "question", "answers", "count")
        check_places("mark_template", self.mark_template, "question", "answer")
        if self.samples < 1 or self.top_count < 1:
            raise FusionError(f"{self.samples} samples and {self.top_count} tokens make no ensemble: 1 or more of each")
        if self.samples > 1 and not self.temperature > 0:
            raise FusionError(f"{self.samples} samples at temperature {self.temperature} would all be the same")

    def fuse(self, operation: Operation) -> Fused:
        """As `Strategy.fuse`."""
        members = answering(operation)
        if self.method in ("linear_pool", "log_pool", "gated"):
            return pool_answers(operation, members, self._pool(), top_count=self.top_count)
        calls = ask_samples(operation, members, self.samples, self.temperature)
        note_left_out(operation, calls, self.extract)
        weights = {member.name: member.weight / self.samples for member in members}
        found = agreements(calls, extract=self.extract, weights=weights)
        if not found:
            raise OperationFailed("no member gave an answer to compare")
        if self.method == "vote":
            return self._fused(operation, found, _shares(found))
        # In the order of priority, so that weights decide nothing but what they are for.
        places = {id(call): place for place, call in enumerate(calls)}
        candidates = sorted(found, key=lambda each: places[id(each.calls[0])])
        if self.method == "best_of_n":
            return self._best_of(operation, [call for call in calls if call.is_answered], candidates)
        return self._ranked(operation, candidates)

    def _pool(self) -> Pool:
        if self.method == "gated":
            return Pool(self.gated_pool, self.gate)
        return Pool("linear") if self.method == "linear_pool" else Pool("log", normalize=self.normalize)

    def _ranked(self, operation: Operation, candidates: Sequence[Agreement]) -> Fused:
        if len(candidates) == 1:
            return self._fused(operation, candidates, [1.0])
        use_judges = self.rank_by == "judges" or (self.rank_by == "auto" and bool(judges(operation)))
        ranks, weights = (self._by_judges if use_judges else _by_members)(operation, candidates)
        if not ranks:
            raise OperationFailed("nobody ranked the answers")
        points = _RULES[self.method](ranks, weights_that_count(weights))
        return self._fused(operation, candidates, [float(each) for each in points])

    def _by_judges(
        self, operation: Operation, candidates: Sequence[Agreement]
    ) -> tuple[list[list[float]], list[float]]:
        asked = judges(operation)
        if not asked:
            raise FusionError(f"{operation.plan.name} has no judge or validator to rank answers")
        ballots = ask_order(operation, asked, [each.text for each in candidates], self.order_template)
        ranks = [ranks_of_order(each.order, len(candidates)) for each in ballots]
        return ranks, [each.judge.weight for each in ballots]

    def _best_of(self, operation: Operation, calls: Sequence[Call], candidates: Sequence[Agreement]) -> Fused:
        asked = judges(operation)
        if self.mark_by == "judges" and not asked:
            raise FusionError(f"{operation.plan.name} has no judge or validator to mark answers")
        if self.mark_by == "log_probability" or not asked:
            for call in calls:
                mean = None if call.answer is None else call.answer.mean_log_probability
                call.score = None if mean is None else math.exp(min(mean, 0.0))
            return self._best(operation, [call for call in calls if call.score is not None])
        marks = ask_marks(operation, asked, [each.text for each in candidates], self.mark_template)
        for candidate, mark in zip(candidates, marks, strict=True):
            for call in candidate.calls:
                call.score = mark
        return self._best(operation, [each.calls[0] for each in candidates if each.calls[0].score is not None])

    def _best(self, operation: Operation, marked: Sequence[Call]) -> Fused:
        if not marked:
            raise OperationFailed("no answer could be marked: judges gave none, and log-probabilities are not known")
        best = max(marked, key=lambda call: call.score or 0.0)
        operation.note("chosen", member=best.member.name, position=best.position, by=self.method, score=best.score)
        return Fused(best.text, best.score, best.member.id, {"method": self.method, "marked": len(marked)})

    def _fused(self, operation: Operation, candidates: Sequence[Agreement], scores: Sequence[float]) -> Fused:
        for candidate, score in zip(candidates, scores, strict=True):
            for call in candidate.calls:
                call.score = score
        place = first_of_best(scores)
        best = candidates[place]
        call = best.calls[0]
        operation.note("chosen", member=call.member.name, position=call.position, by=self.method, score=scores[place])
        tally = {each.answer: score for each, score in zip(candidates, scores, strict=True)}
        return Fused(best.text, scores[place], call.member.id, {"method": self.method, "scores": tally})


def _shares(found: Sequence[Agreement]) -> list[float]:
    weights = weights_that_count([each.weight for each in found])
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _by_members(operation: Operation, candidates: Sequence[Agreement]) -> tuple[list[list[float]], list[float]]:
    """Ballots by log-probabilities, of members of level N that have answered: one that hangs is asked nothing more."""
    answered = {call.member.id for candidate in candidates for call in candidate.calls}
    able = [member for member in answering(operation) if member.level == "N" and member.id in answered]
    if not able:
        raise FusionError("nobody can rank answers: that takes a judge, a validator, or members of level N")
    texts = [each.text for each in candidates]
    asked = [
        (replace(member, inner=ScoringMember(cast("Predicting", member.inner), texts)), operation.question())
        for member in able
    ]
    ranks, weights = [], []
    for call in operation.ask_all(asked):
        scores = [] if call.answer is None else call.answer.details[SCORES]
        operation.note("judged", member=call.member.name, position=call.position, scores=scores)
        if scores:
            ranks.append([-score for score in scores])
            weights.append(call.member.weight)
    return ranks, weights

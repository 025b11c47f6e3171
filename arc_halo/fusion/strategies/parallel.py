"""All members answer at once; one of the answers is chosen, or one is written of all.

To choose: a judge (Zheng et al. 2023, Judging LLM-as-a-Judge), or weight. To write one of all: the aggregator of
Mixture-of-Agents (Wang et al. 2024, arXiv:2406.04692), in one layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from arc_halo.errors import FusionError, OperationFailed
from arc_halo.fusion.strategies.agreement import (
    Agreement,
    agreements,
    check_expression,
    first_of_best,
    note_left_out,
    weights_that_count,
)
from arc_halo.fusion.strategies.asking import answering, judges
from arc_halo.fusion.strategies.judging import CHOICE_TEMPLATE, SYNTHESIS_TEMPLATE, ask_order, listed
from arc_halo.fusion.strategies.protocol import Fused, Strategy
from arc_halo.fusion.strategies.templates import check_places, filled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arc_halo.fusion.operations.calls import Call
    from arc_halo.fusion.operations.operation import Operation


@dataclass(frozen=True)
class Parallel(Strategy):
    """Ask all primary and secondary members, and make one answer of theirs.

    Attributes
    ----------
    decide
        ``synthesizer``: a member in that role writes it. ``judge``: members in the roles judge and validator choose it,
        each by its weight. ``agreement``: the answer with the greatest sum of weights. ``weight``: the answer of the
        member of most weight. ``auto``: the first of the first three that the reactor has members for. Of equals
        the one of first priority.
    on_failure
        What to do if members fail, are late or are skipped. ``use_rest``: go on without them; where no judge or
        synthesizer gives anything, agreement decides. ``fail``: the operation has failed.
    quorum
        How many members must answer.
    extract
        What of an answer is compared with others: see `agreement.normalized`. Judges are asked only where answers
        differ by it.
    choice_template
        What judges are asked: ``{question}``, ``{answers}`` (numbered), ``{count}``.
    synthesis_template
        What a synthesizer is asked: the same.
    """

    name: ClassVar[str] = "parallel"

    decide: Literal["auto", "synthesizer", "judge", "agreement", "weight"] = "auto"
    on_failure: Literal["use_rest", "fail"] = "use_rest"
    quorum: int = 1
    extract: str | None = None
    choice_template: str = CHOICE_TEMPLATE
    synthesis_template: str = SYNTHESIS_TEMPLATE

    def __post_init__(self) -> None:
        check_expression(self.extract)
        check_places("choice_template", self.choice_template, "question", "answers", "count")
        check_places("synthesis_template", self.synthesis_template, "question", "answers", "count")
        if self.quorum < 1:
            raise FusionError(f"a quorum is 1 or more, not {self.quorum}")

    def fuse(self, operation: Operation) -> Fused:
        """As `Strategy.fuse`."""
        decide = self._decided_by(operation)
        calls = operation.ask_all([(member, operation.question()) for member in answering(operation)])
        note_left_out(operation, calls, self.extract)
        answered = [call for call in calls if call.is_answered]
        if not answered:
            raise OperationFailed("no member answered")
        if self.on_failure == "fail" and len(answered) < len(calls):
            raise OperationFailed(f"{len(calls) - len(answered)} of {len(calls)} members gave no answer")
        if len(answered) < self.quorum:
            raise OperationFailed(f"{len(answered)} members answered, and the quorum is {self.quorum}")
        found = agreements(answered, extract=self.extract)
        if not found:
            raise OperationFailed("no answer has anything to compare")
        fused = None
        if decide == "synthesizer":
            fused = self._synthesize(operation, answered)
        elif decide == "judge":
            fused = self._judge(operation, found)
        elif decide == "weight":
            return _heaviest(operation, answered)
        if fused is None and decide in ("judge", "synthesizer") and self.on_failure == "fail":
            raise OperationFailed(f"no {decide} gave anything to decide by")
        return fused or _agreed(operation, found)

    def _decided_by(self, operation: Operation) -> str:
        can = {"synthesizer": bool(operation.with_role("synthesizer")), "judge": bool(judges(operation))}
        if self.decide == "auto":
            return next((each for each, is_there in can.items() if is_there), "agreement")
        if not can.get(self.decide, True):
            raise FusionError(f"decide={self.decide!r} needs a member in such a role; {operation.plan.name} has none")
        return self.decide

    def _judge(self, operation: Operation, found: Sequence[Agreement]) -> Fused | None:
        if len(found) == 1:
            return _agreed(operation, found)  # all say the same: no judge could choose otherwise
        # As first answered, so that chance shows them alike whatever they weigh.
        ordered = sorted(found, key=lambda each: each.calls[0].position)
        ballots = ask_order(operation, judges(operation), [each.text for each in ordered], self.choice_template)
        if not ballots:
            return None
        weights = weights_that_count([each.judge.weight for each in ballots])
        shares = [
            math.fsum(weight for each, weight in zip(ballots, weights, strict=True) if each.order[0] == candidate)
            / math.fsum(weights)
            for candidate in range(len(ordered))
        ]
        for agreement, share in zip(ordered, shares, strict=True):
            for call in agreement.calls:
                call.score = share
        best = first_of_best(shares)
        return _chosen(operation, ordered[best], shares[best], "judge")

    def _synthesize(self, operation: Operation, answered: Sequence[Call]) -> Fused | None:
        prompt = filled(
            self.synthesis_template,
            question=operation.input.prompt,
            answers=listed([call.text for call in answered]),
            count=len(answered),
        )
        for member in operation.with_role("synthesizer"):
            call = operation.ask(member, operation.question(prompt))
            operation.note("synthesized", member=member.name, position=call.position, status=call.status)
            if call.is_answered:
                mean = call.answer.mean_log_probability if call.answer is not None else None
                call.score = None if mean is None else math.exp(mean)
                return Fused(call.text, call.score, member.id, {"decided_by": "synthesizer"})
        return None


def _agreed(operation: Operation, found: Sequence[Agreement]) -> Fused:
    weights = weights_that_count([each.weight for each in found])
    for each, weight in zip(found, weights, strict=True):
        for call in each.calls:
            call.score = weight / math.fsum(weights)
    return _chosen(operation, found[0], found[0].calls[0].score, "agreement")


def _heaviest(operation: Operation, answered: Sequence[Call]) -> Fused:
    call = max(answered, key=lambda each: each.member.weight)
    operation.note("chosen", member=call.member.name, position=call.position, by="weight")
    return Fused(call.text, member_id=call.member.id, details={"decided_by": "weight"})


def _chosen(operation: Operation, found: Agreement, score: float | None, by: str) -> Fused:
    call = found.calls[0]
    if by != "agreement" or score != 1.0:  # else there was nothing to decide
        operation.note("chosen", member=call.member.name, position=call.position, by=by, score=score)
    return Fused(found.text, score, call.member.id, {"decided_by": by, "answers_alike": len(found.calls)})

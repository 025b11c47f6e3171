"""Members answer one after another until one is sure enough.

FrugalGPT (Chen, Zaharia & Zou 2023, arXiv:2305.05176) asks cheap members first and goes on to dearer ones while a score
of the answer is below a threshold of the member. When that is right to do by the member's own confidence alone:
Jitkrittum et al. (2023, When Does Confidence-Based Cascade Deferral Suffice?); which figures of tokens serve: Gupta et
al. (2024, Language Model Cascades: Token-level uncertainty and beyond). Confidences are as good as they are calibrated
(Guo et al. 2017, On Calibration of Modern Neural Networks): thresholds belong to a member, not to a reactor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from arc_halo.errors import FusionError, OperationFailed
from arc_halo.fusion.strategies.agreement import agreements, check_expression
from arc_halo.fusion.strategies.asking import answering, ask_samples
from arc_halo.fusion.strategies.protocol import Fused, Strategy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arc_halo.fusion.operations.calls import Call, Member
    from arc_halo.fusion.operations.operation import Operation

NEVER: Final = 2.0
"""As a threshold: no confidence reaches it. JSON has no infinity."""
_SILENT: Final = "not_measured"
_ADVICE: Final = "it gave no log-probabilities; the measure self_agreement needs none"
Confidence = Literal["mean_log_probability", "margin", "self_agreement"]


def confidence(calls: Sequence[Call], measure: Confidence, *, extract: str | None = None) -> float | None:
    """How sure a member is, from 0 to 1; None where its answers do not tell.

    Parameters
    ----------
    calls
        All of one member: one, or samples for ``self_agreement``.
    measure
        ``mean_log_probability``: the geometric mean of the tokens' probabilities, of the first answer. ``margin``: the
        least lead of a token before the second best, of the first answer. ``self_agreement``: which share of the
        samples gives the most frequent answer (Wang et al. 2023, Self-Consistency Improves Chain of Thought Reasoning);
        samples that failed agree with none.
    extract
        As of `agreement.normalized`.
    """
    answered = [call for call in calls if call.is_answered]
    if not answered:
        return None
    if measure == "self_agreement":
        found = agreements(calls, extract=extract, weights={call.member.name: 1.0 for call in calls})
        return found[0].weight / len(calls) if found else 0.0
    answer = answered[0].answer
    if answer is None:
        return None
    if measure == "margin":
        return answer.min_margin
    mean = answer.mean_log_probability
    return None if mean is None else math.exp(min(mean, 0.0))


@dataclass(frozen=True)
class Cascade(Strategy):
    """Ask in the order of priority; the first answer that its member is sure enough of is the answer.

    The last member's answer is accepted as it is. Where that gives none, the answer of the last one that gave one is:
    in a cascade each next is meant to be better. An answer that came without log-probabilities, where the measure needs
    them, is passed by, and it is noted that another measure would tell.

    Attributes
    ----------
    measure
        See `confidence`.
    threshold
        Least confidence that is accepted, of members that ``thresholds`` does not name.
    thresholds
        By members' names.
    samples, temperature
        Of ``self_agreement``.
    extract
        What of an answer is compared, of ``self_agreement``.
    """

    name: ClassVar[str] = "cascade"

    measure: Confidence = "mean_log_probability"
    threshold: float = 0.8
    thresholds: dict[str, float] = field(default_factory=dict)
    samples: int = 5
    temperature: float = 0.7
    extract: str | None = None

    def __post_init__(self) -> None:
        check_expression(self.extract)
        if self.samples < 2 or not self.temperature > 0:  # noqa: PLR2004
            raise FusionError(f"{self.samples} samples at temperature {self.temperature} cannot agree or differ")
        for each in (self.threshold, *self.thresholds.values()):
            if not 0 <= each <= NEVER:
                raise FusionError(f"a confidence is from 0 to 1: no threshold is {each}; {NEVER:g} accepts none")

    def fuse(self, operation: Operation) -> Fused:
        """As `Strategy.fuse`."""
        members = answering(operation)
        known = {member.name for member in operation.plan.members} | set(operation.plan.disabled)
        if unknown := self.thresholds.keys() - known:
            raise FusionError(f"thresholds of members that there are not: {sorted(unknown)}; there are {sorted(known)}")
        latest: Fused | None = None
        for member in members:
            is_last = member is members[-1]
            answered = self._ask(operation, member)
            latest = answered or latest
            threshold = self.thresholds.get(member.name, self.threshold)
            score = None if answered is None else answered.score
            is_accepted = answered is not None and (is_last or (score is not None and score >= threshold))
            operation.note(
                "confidence",
                member=member.name,
                value=score,
                threshold=None if is_last else threshold,
                accepted=is_accepted,
                **({_SILENT: _ADVICE} if answered is not None and score is None and not is_last else {}),
            )
            if is_accepted:
                break
        if latest is None:
            raise OperationFailed("no member of the cascade answered")
        return latest

    def _ask(self, operation: Operation, member: Member) -> Fused | None:
        samples = self.samples if self.measure == "self_agreement" else 1
        tops = {"top_count": 2} if self.measure == "margin" else {}
        calls = ask_samples(operation, [member], samples, self.temperature, **tops)
        answered = [call for call in calls if call.is_answered]
        if not answered:
            return None
        value = confidence(calls, self.measure, extract=self.extract)
        for call in answered:
            call.score = value
        found = agreements(calls, extract=self.extract, weights={member.name: 1.0}) if samples > 1 else []
        text = found[0].text if found else answered[0].text
        return Fused(text, value, member.id, {"measure": self.measure})

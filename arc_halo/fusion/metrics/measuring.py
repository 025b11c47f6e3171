"""Figures of one operation, from what is in this process: nothing is read from the database."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import numpy as np

from arc_halo.fusion.figures import Figures
from arc_halo.fusion.metrics.coherence import divergence_coherence, mean_pairwise_cosine
from arc_halo.fusion.metrics.diversity import self_bleu, vendi_score
from arc_halo.fusion.metrics.quality import ALONE_ROLES, Standing, exact_match, gain_and_gap, normalised

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Sequence

    from arc_halo.fusion.operations.calls import Call, Input
    from arc_halo.fusion.operations.operation import Operation
    from arc_halo.fusion.plan import MemberPlan
    from arc_halo.fusion.strategies.protocol import Fused

    Scorer = Callable[[Input, str], float]
    Embed = Callable[[Sequence[str]], np.ndarray]


_COMPARED_CHARACTERS: Final = 20_000  # of words: a member that goes on for megabytes must not hold up the answer


def measure_operation(
    operation: Operation,
    fused: Fused | None,
    *,
    scorer: Scorer | None = None,
    embed: Embed | None = None,
    standing: Standing | None = None,
) -> Figures:
    """Figures of one operation; the quality of each answer is left in its call.

    What is compared are the answers that members gave *alone*: those to the question as it was put, of members whose
    role is to answer. A judge's verdict, or an answer to another member's draft, is none.

    Coherence and diversity need two members that answered. With vectors of their answers, coherence is the mean
    cosine of all pairs, 0 where that is below 0, and diversity the Vendi score v of n answers as (v - 1) / (n - 1).
    Without, coherence is 1 - JSD / H(w) of the votes, weighted as the members are, and diversity 1 - self-BLEU.
    A strategy that saw whole distributions says their coherence itself, by ``coherence`` in its details.

    Gain is counted from the answer of the best member that answered alone in this operation. The best is the one with
    the best mean quality in the operations so far; without any, the one of the greatest weight, then of the smallest
    priority. It is not the best of *this* operation, who is known only afterwards: that one the oracle gap is about.

    Parameters
    ----------
    fused
        None for an operation without an answer: it has no quality.
    scorer
        By default 1 for the reference and 0 for anything else, as `exact_match` compares them.
    embed
        Vectors of texts, shape [texts, dimension].
    standing
        How good members were so far.

    Notes
    -----
    What a scorer or an embedding raises, or gives that is no number, is noted in the trace, and leaves its figures out.
    """
    alone = [call for call in operation.calls if is_alone(operation, call)]
    quality = _measure_quality(operation, fused, alone, scorer)
    gain, gap = None, None
    if quality is not None:
        answers: dict[uuid.UUID, list[float]] = defaultdict(list)
        plans: dict[uuid.UUID, MemberPlan] = {}
        for call in alone:
            if call.quality is not None:
                answers[call.member.id].append(call.quality)
                plans[call.member.id] = call.member.plan
        best = (standing or Standing()).best(plans.values()).id if plans else None
        gain, gap = gain_and_gap(quality, answers, best)
    coherence, diversity = _measure_agreement(operation, alone, embed)
    said = None if fused is None else fused.details.get("coherence")
    if isinstance(said, float) and 0 <= said <= 1:
        coherence = said
    return Figures(coherence=coherence, diversity=diversity, quality=quality, gain=gain, oracle_gap=gap)


def is_alone(operation: Operation, call: Call) -> bool:
    """Whether a call is a member's own answer to the question, without another's."""
    is_own = call.answer is not None and call.answer.is_own
    return is_own and call.member.role in ALONE_ROLES and call.question.prompt == operation.input.prompt


def _measure_quality(
    operation: Operation, fused: Fused | None, alone: Sequence[Call], scorer: Scorer | None
) -> float | None:
    reference = operation.input.reference
    if scorer is None:
        if reference is None:
            return None
        scorer = lambda _, answer: exact_match(answer, reference)  # noqa: E731
    known: dict[str, float | None] = {}  # scorers may be dear: each text is scored once

    def score(answer: str) -> float | None:
        if answer not in known:
            known[answer] = _scored(operation, scorer, answer)
        return known[answer]

    for call in alone:
        call.quality = score(call.text)
    return None if fused is None else score(fused.text)


def _scored(operation: Operation, scorer: Scorer, answer: str) -> float | None:
    try:
        quality = float(scorer(operation.input, answer))
    except Exception as error:  # noqa: BLE001  # of somebody else's code: the operation is stored without a quality
        operation.note("not_measured", what="quality", error=f"{type(error).__name__}: {error}"[:500])
        return None
    if not math.isfinite(quality):
        operation.note("not_measured", what="quality", error=f"the scorer gave {quality}")
        return None
    return quality


def _measure_agreement(
    operation: Operation, alone: Sequence[Call], embed: Embed | None
) -> tuple[float | None, float | None]:
    if len({call.member.id for call in alone}) < 2:  # noqa: PLR2004
        return None, None
    texts = [call.text for call in alone]
    if embed is None:
        return _vote_coherence(alone), _word_diversity(texts)
    try:
        vectors = np.asarray(embed(texts))
        if len(vectors) != len(texts):
            raise ValueError(f"{len(vectors)} vectors for {len(texts)} texts")  # noqa: TRY301
        cosine, vendi = mean_pairwise_cosine(vectors), vendi_score(vectors)
    except Exception as error:  # noqa: BLE001  # of somebody else's code: the operation is stored without these figures
        operation.note("not_measured", what="coherence, diversity", error=f"{type(error).__name__}: {error}"[:500])
        return None, None
    return None if cosine is None else max(0.0, cosine), (vendi - 1) / (len(texts) - 1)


def _vote_coherence(alone: Sequence[Call]) -> float | None:
    """A member is a distribution over answers: its votes, one for each time it answered."""
    answers = {each: at for at, each in enumerate(dict.fromkeys(normalised(call.text) for call in alone))}
    members = {each.member.id: each.member for each in alone}
    rows = {each: at for at, each in enumerate(members)}
    votes = np.zeros((len(members), len(answers)))
    for call in alone:
        votes[rows[call.member.id], answers[normalised(call.text)]] += 1
    weights = [member.weight for member in members.values()]
    if sum(weight > 0 for weight in weights) < 2:  # noqa: PLR2004
        weights = [1.0] * len(members)  # weights that silence all but one say nothing of how they agree
    return divergence_coherence(votes / votes.sum(axis=1, keepdims=True), weights)


def _word_diversity(texts: Sequence[str]) -> float | None:
    alike = self_bleu([text[:_COMPARED_CHARACTERS] for text in texts])
    return None if alike is None else 1 - alike

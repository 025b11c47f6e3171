"""How likely a member of level N holds texts that others wrote."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from arc_halo.fusion.members.generating import checked_logits, log_softmax, whole_prompt
from arc_halo.fusion.members.protocol import SCORES, Answer
from arc_halo.fusion.pools import LEAST_LOG_PROBABILITY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arc_halo.fusion.members.protocol import Level, Predicting, Question


class ScoringMember:
    """A member that answers with how likely it holds given texts, in the place of one of its own.

    ``details["scores"]`` has the mean log-probability of the tokens of each text after the question; the answer's text
    is their order. It is asked by the thread of its call, and there may be no other of the same member meanwhile.
    """

    level: Level = "T"

    def __init__(self, inner: Predicting, texts: Sequence[str]) -> None:
        self._inner, self._texts = inner, texts

    def answer(self, question: Question) -> Answer:
        """Score all texts as continuations of the question."""
        scores, counts = [], 0
        for text in self._texts:
            score, count = _score(self._inner, whole_prompt(question), text)
            scores.append(score)
            counts += count
        order = sorted(range(len(scores)), key=lambda each: -scores[each])
        text = " > ".join(str(each + 1) for each in order)
        return Answer(text, prompt_token_count=counts, generated_token_count=0, details={SCORES: scores})


_NOTHING: Final = (LEAST_LOG_PROBABILITY, 0)


def _score(member: Predicting, prompt: str, text: str) -> tuple[float, int]:
    """Mean log-probability of the tokens that a text adds to a prompt, and how many tokens there are in all."""
    before, whole = member.encode(prompt), member.encode(prompt + text)
    # The last token of the prompt may merge with the first of the text: what is the same is the beginning.
    same = next((at for at, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
    same = min(max(same, 1), len(whole))
    if same == len(whole):
        return _NOTHING
    scores = [
        float(log_softmax(checked_logits(member, member.next_logits(whole[:at])))[whole[at]])
        for at in range(same, len(whole))
    ]
    return max(math.fsum(scores) / len(scores), LEAST_LOG_PROBABILITY), len(whole)

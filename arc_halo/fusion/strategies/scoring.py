"""How likely a member of level N holds texts that others wrote."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from arc_halo.errors import MemberTimeout
from arc_halo.fusion.members.generating import checked_logits, log_softmax, whole_prompt
from arc_halo.fusion.members.protocol import SCORES, Answer, Verifying
from arc_halo.fusion.pools import LEAST_LOG_PROBABILITY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from arc_halo.fusion.members.protocol import Level, Predicting, Question


class ScoringMember:
    """A member that answers with how likely it holds given texts, in the place of one of its own.

    ``details["scores"]`` has the mean log-probability of the tokens of each text after the question; the answer's text
    is their order.
    """

    level: Level = "T"

    def __init__(self, inner: Predicting, texts: Sequence[str]) -> None:
        self.wrapped, self._texts = inner, texts

    def answer(self, question: Question) -> Answer:
        """Score all texts as continuations of the question."""
        return self.answer_while(question, lambda: True)

    def answer_while(self, question: Question, is_wanted: Callable[[], bool]) -> Answer:
        """As `answer`, asking before each text whether to go on."""
        scores: list[float] = []
        counts = 0
        for text in self._texts:
            if not is_wanted():
                raise MemberTimeout(f"stopped after {len(scores)} texts")
            score, count = _score(self.wrapped, whole_prompt(question), text)
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
    if isinstance(member, Verifying):  # in one pass
        rows = list(member.each_next_logits(whole[:-1], same))
    else:
        rows = [member.next_logits(whole[:at]).copy() for at in range(same, len(whole))]
    scores = [
        float(log_softmax(checked_logits(member, row))[token_id])
        for row, token_id in zip(rows, whole[same:], strict=True)
    ]
    return max(math.fsum(scores) / len(scores), LEAST_LOG_PROBABILITY), len(whole)

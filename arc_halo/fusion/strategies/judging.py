"""What judges are asked about answers of others, and how their words are read.

Judges favour what they read first (Zheng et al. 2023, Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena; Wang et
al. 2024, Large Language Models are not Fair Evaluators), so each gets the answers in an order of its own, by chance.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from arc_halo.fusion.strategies.agreement import weights_that_count
from arc_halo.fusion.strategies.templates import filled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arc_halo.fusion.operations.calls import Call, Member
    from arc_halo.fusion.operations.operation import Operation

ORDER_TEMPLATE: Final = (
    "Question:\n{question}\n\nAnswers:\n{answers}\n\nOrder the {count} answers from best to worst. Reply with their "
    "numbers only, as in: 2 > 1"
)
CHOICE_TEMPLATE: Final = (
    "Question:\n{question}\n\nAnswers:\n{answers}\n\nWhich of the {count} answers is best? Reply with its number only."
)
MARK_TEMPLATE: Final = (
    "Question:\n{question}\n\nAnswer:\n{answer}\n\nHow good is this answer, from 0 (useless) to 10 (perfect)? Reply "
    "with the number only."
)
SYNTHESIS_TEMPLATE: Final = (
    "Question:\n{question}\n\nAnswers of several assistants:\n{answers}\n\nThey may be wrong. Write the one best "
    "answer to the question."
)
BEST_MARK: Final = 10.0
_NUMBER: Final = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Ballot:
    """What a judge said of candidates.

    Attributes
    ----------
    order
        Candidates by their places in what was judged, best first.
    """

    judge: Member
    order: tuple[int, ...]


def listed(texts: Sequence[str]) -> str:
    """Answers with their numbers, from 1."""
    return "\n\n".join(f"[{number}] {text}" for number, text in enumerate(texts, 1))


def parse_order(text: str, count: int) -> tuple[int, ...]:
    r"""An order of candidates, from 0: the numbers from 1 to ``count`` in the last line that has one of them.

    Examples
    --------
    >>> parse_order("I compared 3 answers.\n2 > 3 > 1", 3)
    (1, 2, 0)
    """
    for line in reversed(text.splitlines()):
        numbers = [int(each) for each in re.findall(r"(?<![\w.-])\d{1,9}(?![\w]|\.\d)", line)]
        if order := dict.fromkeys(each - 1 for each in numbers if 1 <= each <= count):
            return tuple(order)
    return ()


def parse_mark(text: str) -> float | None:
    r"""A mark from 0 to 1: the first number in the last line that has one, divided by 10; None for all others.

    Examples
    --------
    >>> parse_mark("Good.\nScore: 8/10"), parse_mark("11"), parse_mark("fine")
    (0.8, None, None)
    """
    for line in reversed(text.splitlines()):
        if found := _NUMBER.search(line):
            mark = float(found[0]) / BEST_MARK
            return mark if 0 <= mark <= 1 else None
    return None


def ask_order(operation: Operation, members: Sequence[Member], texts: Sequence[str], template: str) -> list[Ballot]:
    """Have judges order texts; those that fail, or whose reply names none, are left out and noted.

    Parameters
    ----------
    template
        Placeholders: ``{question}``, ``{answers}`` (numbered) and ``{count}``.
    """
    orders = [operation.random.sample(range(len(texts)), len(texts)) for _ in members]
    prompts = [
        filled(
            template,
            question=operation.input.prompt,
            answers=listed([texts[each] for each in order]),
            count=len(texts),
        )
        for order in orders
    ]
    calls = operation.ask_all(
        [(judge, operation.question(prompt)) for judge, prompt in zip(members, prompts, strict=True)]
    )
    ballots = []
    for call, shown in zip(calls, orders, strict=True):
        said = parse_order(call.text, len(texts)) if call.is_answered else ()
        order = tuple(shown[each] for each in said)
        _note(operation, call, is_read=bool(order), order=list(order), shown=shown)
        if order:
            ballots.append(Ballot(call.member, order))
    return ballots


def ask_marks(
    operation: Operation, members: Sequence[Member], texts: Sequence[str], template: str
) -> list[float | None]:
    """Have judges mark each text alone, from 0 to 1: means by the judges' weights; None where no judge gave one.

    Parameters
    ----------
    template
        Placeholders: ``{question}`` and ``{answer}``.
    """
    marks: list[float | None] = []
    asked = list(members)
    for text in texts:  # one after another: members of level N may be asked by one thread only
        question = operation.question(filled(template, question=operation.input.prompt, answer=text))
        calls = operation.ask_all([(judge, question) for judge in asked])
        found = [parse_mark(call.text) if call.is_answered else None for call in calls]
        for call, mark in zip(calls, found, strict=True):
            _note(operation, call, is_read=mark is not None, mark=mark, answer=len(marks))
        marks.append(_mean(found, [call.member.weight for call in calls]))
        asked = [call.member for call in calls if call.status != "timed_out"]  # it would cost its time again
    return marks


def _mean(marks: Sequence[float | None], weights: Sequence[float]) -> float | None:
    known = [(mark, weight) for mark, weight in zip(marks, weights, strict=True) if mark is not None]
    counted = weights_that_count([weight for _, weight in known])
    return (
        math.fsum(mark * weight for (mark, _), weight in zip(known, counted, strict=True)) / math.fsum(counted)
        if known
        else None
    )


def _note(operation: Operation, call: Call, *, is_read: bool, **details: object) -> None:
    said = {"status": call.status} if not call.is_answered else {"reply": "names no answer"} if not is_read else {}
    operation.note("judged", member=call.member.name, position=call.position, **details, **said)

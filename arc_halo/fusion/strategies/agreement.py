"""Which answers say the same, and how much weight says so.

Answers are compared by what an expression extracts of them (all of it without one), in Unicode's form NFKC, casefolded,
with runs of white space as one blank and none at either end.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from arc_halo.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from arc_halo.fusion.operations.calls import Call
    from arc_halo.fusion.operations.operation import Operation


@dataclass(frozen=True, slots=True)
class Agreement:
    """Calls that answer the same.

    Attributes
    ----------
    answer
        Normalised.
    calls
        In their order: the first one's text stands for all.
    weight
        Of all of them.
    """

    answer: str
    calls: tuple[Call, ...]
    weight: float

    @property
    def text(self) -> str:
        """As the first one wrote it."""
        return self.calls[0].text


def normalized(text: str, extract: str | None = None) -> str | None:
    r"""What of an answer is compared; None where there is nothing.

    Parameters
    ----------
    extract
        A regular expression; its last match counts, since answers come after their reasons: its first group, where it
        has one.

    Examples
    --------
    >>> normalized("It has  7 days.\nAnswer:  SEVEN ", r"Answer:(.*)")
    'seven'
    """
    if extract is not None:
        last = None
        for last in re.finditer(extract, text):  # noqa: B007  # only the last is wanted
            pass
        if last is None:
            return None
        text = (last.group(1) or "") if last.re.groups else last.group()
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()) or None


def check_expression(extract: str | None) -> None:
    """See that an expression can be used.

    Raises
    ------
    FusionError
        It cannot.
    """
    try:
        re.compile(extract or "")
    except re.error as error:
        raise FusionError(f"extract={extract!r} is no regular expression: {error}") from error


def agreements(
    calls: Sequence[Call], *, extract: str | None = None, weights: Mapping[str, float] | None = None
) -> list[Agreement]:
    """Group calls by what they answer; calls without an answer are left out.

    Parameters
    ----------
    calls
        In the order of priority.
    weights
        Of a call, by its member's name; by default those of the members.

    Returns
    -------
    list of Agreement
        The one with most weight first; of equals the one whose first call comes first.
    """
    groups: dict[str, list[Call]] = {}
    for call in calls:
        if call.is_answered and (answer := normalized(call.text, extract)) is not None:
            groups.setdefault(answer, []).append(call)
    known = {call.member.name: call.member.weight for call in calls} if weights is None else weights
    found = [
        Agreement(answer, tuple(group), math.fsum(known[call.member.name] for call in group))
        for answer, group in groups.items()
    ]
    return sorted(found, key=lambda each: -_rounded(each.weight))


def first_of_best(scores: Sequence[float]) -> int:
    """The place of the greatest; of equals the first. Sums that differ by rounding alone are equal."""
    rounded = [_rounded(each) for each in scores]
    return rounded.index(max(rounded))


def _rounded(score: float) -> float:
    return float(f"{score:.12g}")


def weights_that_count(weights: Sequence[float]) -> list[float]:
    """Weights as they are, or 1 for each where all are 0: then none says that one counts less than another."""
    return list(weights) if any(weights) else [1.0] * len(weights)


def note_left_out(operation: Operation, calls: Sequence[Call], extract: str | None = None) -> None:
    """Note which calls no answer is taken from."""
    for call in calls:
        if not call.is_answered:
            operation.note("left_out", member=call.member.name, position=call.position, status=call.status)
        elif normalized(call.text, extract) is None:
            operation.note("left_out", member=call.member.name, position=call.position, status="nothing to compare")

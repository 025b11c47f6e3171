"""Members made of plain functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arc_halo.errors import MemberError
from arc_halo.fusion.members.protocol import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from arc_halo.fusion.members.protocol import Level, Question


class CallableMember:
    """A function as a member.

    Parameters
    ----------
    function
        Gets the prompt and returns a text; with ``whole_question`` it gets the `Question`, and may return an `Answer`.
    level
        ``L`` where its answers have log-probabilities.

    Examples
    --------
    >>> from arc_halo.fusion.members import CallableMember, Question
    >>> CallableMember(str.upper).answer(Question("aye")).text
    'AYE'
    """

    def __init__(
        self,
        function: Callable[[str], str] | Callable[[Question], str | Answer],
        *,
        whole_question: bool = False,
        level: Level = "T",
    ) -> None:
        self._function: Callable[..., object] = function
        self._whole_question = whole_question
        self.level = level

    def answer(self, question: Question) -> Answer:
        """Call the function.

        Raises
        ------
        MemberError
            It returns something else than a text or an `Answer`.
        """
        answered = self._function(question if self._whole_question else question.prompt)
        if isinstance(answered, str):
            return Answer(answered)
        if isinstance(answered, Answer):
            return answered
        raise MemberError(f"it returned a {type(answered).__name__} in the place of a text or an Answer")

"""Models that were trained to chat, asked in the template of their tokenizer; the extra ``transformers``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from arc_halo.errors import FusionError, MemberError

if TYPE_CHECKING:
    from collections.abc import Callable

    from arc_halo.fusion.members.protocol import Answer, Question
    from arc_halo.integrations.transformers_members import TransformersMember

SETTING = "chat_template"
"""Of a member's config: true for the template of its tokenizer."""


class ChatMember:
    """A live model of transformers that answers chats: the question is put as its tokenizer's template says.

    It gives whole answers with their log-probabilities. Logits of next tokens it does not give: strategies that pool
    them go on from a text of their own, which would not be that of the template.

    The template is a file of the model, written in Jinja; transformers runs it in a sandbox that has no way to files,
    modules or attributes of objects.

    Parameters
    ----------
    member
        Computes, and keeps keys and values, as it does without a template.

    Raises
    ------
    FusionError
        Its tokenizer has no template.
    """

    def __init__(self, member: TransformersMember) -> None:
        if not getattr(member.tokenizer, "chat_template", None):
            raise FusionError(f"the tokenizer has no chat template: leave {SETTING} out of the member's config")
        self._member = member

    @property
    def level(self) -> Literal["L"]:
        """``L``: answers with log-probabilities."""
        return "L"

    def answer(self, question: Question) -> Answer:
        """Answer a question of a user, after what the system says where there is such.

        Raises
        ------
        MemberError
            The template refuses the question, or it leaves no position for an answer.
        """
        return self.answer_while(question, lambda: True)

    def answer_while(self, question: Question, is_wanted: Callable[[], bool]) -> Answer:
        """As `answer`, until nobody wants it any more."""
        answer = self._member.continue_while(self.encode(question), question, is_wanted)
        return replace(answer, details={**answer.details, SETTING: True})

    def encode(self, question: Question) -> list[int]:
        """The tokens of a question in the template, up to where the answer begins."""
        told = [] if question.system is None else [{"role": "system", "content": question.system}]
        messages = [*told, {"role": "user", "content": question.prompt}]
        tokenizer: Any = self._member.tokenizer
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise MemberError(f"its chat template refuses the question: {error}") from error
        # The template has written all special tokens there are to be.
        return self._member.encode(text, add_special_tokens=False)


def wants_template(config: Any, who: str) -> bool:
    """What a member's config says of the template.

    Raises
    ------
    FusionError
        It is neither true nor false.
    """
    said = config.get(SETTING, False)
    if not isinstance(said, bool):
        raise FusionError(f"{SETTING} of the member {who!r} is true or false, not {said!r:.40}")
    return said

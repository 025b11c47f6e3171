"""The one protocol of members, in three levels."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

from arc_halo.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

Level = Literal["T", "L", "N"]
SCORES: Final = "scores"
"""Key of `Answer.details` where marks of others' texts stand: such an answer is none to the question."""
JOINT: Final = "joint"
"""Key of `Answer.details` that an answer has which several members wrote together, token by token."""
NOT_OWN: Final = frozenset({SCORES, JOINT})
"""Keys of `Answer.details` of answers that say nothing of how good their member is alone."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a member is asked.

    Attributes
    ----------
    prompt
        The text to answer or to continue.
    system
        What is said to it beforehand; members without such a place put it before the prompt.
    max_tokens
        Of the answer, at most.
    temperature
        0 takes the most probable token each time.
    seed
        For members that draw at random; of those that cannot be seeded answers are not repeatable.
    stop
        Texts that end the answer, and are not part of it.
    top_count
        How many alternatives to give with each token; members of level T give none.
    """

    prompt: str
    system: str | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_count: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise FusionError(f"an answer has at least one token, not {self.max_tokens}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise FusionError(f"a temperature is 0 or more, not {self.temperature}")

    def to_json(self) -> dict[str, Any]:
        """What is stored of it: all that is not as by default, and the prompt."""
        said = asdict(self) | {"stop": list(self.stop)}
        default = asdict(Question("")) | {"stop": []}
        return {name: value for name, value in said.items() if name == "prompt" or value != default[name]}


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """One token of an answer, with its alternatives.

    Attributes
    ----------
    text
        Of the token.
    log_probability
        Natural logarithm of its probability, at temperature 1.
    top
        Log-probabilities of the most probable tokens at this place, by their texts.
    """

    text: str
    log_probability: float
    top: Mapping[str, float] = field(default_factory=dict)

    @property
    def margin(self) -> float | None:
        """Probability of the best token less that of the second; None where less than two are known."""
        best = sorted(self.top.values(), reverse=True)[:2]
        return math.exp(best[0]) - math.exp(best[1]) if len(best) == 2 else None  # noqa: PLR2004


@dataclass(frozen=True, slots=True)
class Answer:
    """What a member answers.

    Attributes
    ----------
    text
        The answer alone, without the question.
    choices
        Its tokens in order; empty at level T.
    finish_reason
        ``stop`` where the member came to an end by itself, ``length`` where it had to.
    prompt_token_count, generated_token_count, cached_token_count
        Tokens of the question, of the answer, and of those of the question that a cache spared; None where the member
        does not say.
    cost
        In the currency of the member's price list; None without one.
    details
        Whatever else the member says, as values of JSON; stored with it.
    """

    text: str
    choices: tuple[TokenChoice, ...] = ()
    finish_reason: str = "stop"
    prompt_token_count: int | None = None
    generated_token_count: int | None = None
    cached_token_count: int | None = None
    cost: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mean_log_probability(self) -> float | None:
        """Of its tokens, in nats; None at level T, and for an answer without tokens."""
        if not self.choices:
            return None
        return math.fsum(choice.log_probability for choice in self.choices) / len(self.choices)

    @property
    def is_joint(self) -> bool:
        """Whether several members wrote it together."""
        return JOINT in self.details

    @property
    def is_own(self) -> bool:
        """Whether the member alone says so, and of itself: not of others' texts, nor with others."""
        return not self.details.keys() & NOT_OWN

    @property
    def min_margin(self) -> float | None:
        """The least margin of its tokens; None where no alternatives are known."""
        margins = [margin for choice in self.choices if (margin := choice.margin) is not None]
        return min(margins, default=None)

    def to_json(self) -> dict[str, Any]:
        """What is stored of it, beside the counts and the cost, which have columns."""
        said: dict[str, Any] = {"text": self.text, "finish_reason": self.finish_reason}
        if self.choices:
            said["choices"] = [[each.text, each.log_probability, dict(each.top)] for each in self.choices]
        if self.details:
            said["details"] = dict(self.details)
        return said


@runtime_checkable
class Answering(Protocol):
    """A member of level T or L. Several threads may ask it at once."""

    @property
    def level(self) -> Level:
        """``T``, or ``L`` where `Answer.choices` are given."""
        ...

    def answer(self, question: Question) -> Answer:
        """Answer a question.

        Raises
        ------
        MemberError
            It gives no answer; the operation goes on without it, as its policy says.
        """
        ...


@runtime_checkable
class Stoppable(Protocol):
    """A member that ends an answer early once nobody waits for it any more; beside `Answering`."""

    def answer_while(self, question: Question, is_wanted: Callable[[], bool]) -> Answer:
        """As `Answering.answer`, asking now and then whether to go on.

        Raises
        ------
        MemberTimeout
            The answer is not wanted any more.
        MemberError
            It gives no answer.
        """
        ...


@runtime_checkable
class Predicting(Protocol):
    """A member of level N: it gives the logits of next tokens, whatever was generated so far.

    One prediction after another: an operation asks it from one thread at a time, whichever members it answers for.
    Several operations may ask it at once, each about tokens of its own.
    """

    @property
    def level(self) -> Level:
        """``N``."""
        ...

    @property
    def vocabulary(self) -> Sequence[str]:
        """The text of each token, by its id."""
        ...

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ...

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens."""
        ...

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """The logits of the token after these, float32 of shape [vocabulary].

        Called with one token more each time, it computes only what is new.
        """
        ...


@runtime_checkable
class Verifying(Protocol):
    """A member of level N that looks at several places in one pass: what drafts are verified by."""

    def each_next_logits(self, token_ids: Sequence[int], first: int) -> np.ndarray:
        """Logits after the first ``first`` tokens, after one more, and so on to all of them.

        float32 of shape [len(token_ids) - first + 1, vocabulary].
        """
        ...


def level_of(member: object) -> Level:
    """What a member can do.

    Raises
    ------
    FusionError
        It is no member.
    """
    level: Level | None = getattr(member, "level", None)
    can = {"T": Answering, "L": Answering, "N": Predicting}
    if level not in can or not isinstance(member, can[level]):
        raise FusionError(
            f"a {type(member).__name__} is no member: it has no answer(question), nor next_logits(token_ids), with the "
            "level that says so; wrap a function in CallableMember"
        )
    return level

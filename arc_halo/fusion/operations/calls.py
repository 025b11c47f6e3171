"""What goes into an operation, who is asked in it, and what came of each call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from arc_halo.errors import FusionError
from arc_halo.fusion.members.protocol import level_of

if TYPE_CHECKING:
    import uuid

    from arc_halo.fusion.members.protocol import Answer, Answering, Level, Predicting, Question
    from arc_halo.fusion.plan import MemberPlan

CallStatus = Literal["answered", "failed", "timed_out", "cancelled", "skipped"]


@dataclass(frozen=True, slots=True)
class Input:
    """What a reactor is asked.

    Attributes
    ----------
    prompt
        The question.
    system
        What is said to the members beforehand; in the place of the reactor's own.
    reference
        The right answer, where it is known: quality is measured by it, and no member sees it.
    """

    prompt: str
    system: str | None = None
    reference: str | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "system", "reference"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "prompt"):
                raise FusionError(f"the {name} of an input is a text, not a {type(value).__name__}")

    @classmethod
    def of(cls, given: Input | str | Mapping[str, Any]) -> Input:
        """Take a text, or the values of JSON that are stored.

        Raises
        ------
        FusionError
            It is neither, or has other keys.
        """
        if isinstance(given, Input):
            return given
        if isinstance(given, str):
            return cls(given)
        if not isinstance(given, Mapping):
            raise FusionError(f"what is asked is a text, an Input or a mapping like one, not a {type(given).__name__}")
        unknown = given.keys() - {"prompt", "system", "reference"}
        if unknown or not isinstance(given.get("prompt"), str):
            raise FusionError(f"an input has a prompt, and may have system and reference; this one has {sorted(given)}")
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """What is stored of it."""
        said = {"prompt": self.prompt, "system": self.system, "reference": self.reference}
        return {name: value for name, value in said.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Member:
    """A member's row, and what answers for it in this process."""

    plan: MemberPlan
    inner: Answering | Predicting

    @property
    def id(self) -> uuid.UUID:
        """Of its row."""
        return self.plan.id

    @property
    def name(self) -> str:
        """Unique in its reactor."""
        return self.plan.name

    @property
    def role(self) -> str:
        """One of `MEMBER_ROLES`."""
        return self.plan.role

    @property
    def weight(self) -> float:
        """How much its answer counts; 0 or more."""
        return self.plan.weight

    @property
    def level(self) -> Level:
        """What it can do."""
        return level_of(self.inner)

    @property
    def answerer(self) -> object:
        """What is asked in the end; several members may have the same."""
        return getattr(self.inner, "wrapped", self.inner)

    @property
    def takes_turns(self) -> bool:
        """Whether only one thread of an operation may ask it at a time: see `Predicting`."""
        return getattr(self.answerer, "level", None) == "N"


@dataclass(slots=True)
class Call:
    """A member asked once.

    Attributes
    ----------
    position
        Its place in the order of asking, from 0.
    status
        None while it is waited for.
    score
        What the strategy makes of the answer: a judge's mark, a confidence.
    quality
        What a scorer makes of it; 1 is best where it is a share.
    propensity
        The probability with which this member was chosen, where that was by chance.
    began_seconds, latency_seconds
        Since the beginning of the operation, and until the answer.
    """

    position: int
    member: Member
    question: Question
    status: CallStatus | None = None
    answer: Answer | None = None
    error: str | None = None
    score: float | None = None
    quality: float | None = None
    propensity: float | None = None
    began_seconds: float = 0.0
    latency_seconds: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_answered(self) -> bool:
        """Whether there is an answer to go on with."""
        return self.status == "answered"

    @property
    def text(self) -> str:
        """The answer's text.

        Raises
        ------
        FusionError
            There is none: look at ``is_answered`` first.
        """
        if self.answer is None:
            raise FusionError(f"{self.member.name} gave no answer: {self.status}")
        return self.answer.text

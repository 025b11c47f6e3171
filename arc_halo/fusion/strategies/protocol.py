"""How a strategy is made of its options, and what it is given and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict

from arc_halo.fusion.plan import parsed

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping
    from typing import Self

    from arc_halo.fusion.operations.operation import Operation


@dataclass(frozen=True, slots=True)
class Fused:
    """The joint answer.

    Attributes
    ----------
    text
        What the reactor answers.
    score
        How sure it is, as the strategy measures it; None where it does not.
    member_id
        Whose answer it is, where one was chosen.
    details
        Values of JSON that say how it came about; stored with the answer.
    """

    text: str
    score: float | None = None
    member_id: uuid.UUID | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Strategy(ABC):
    """One way to make an answer of many.

    A subclass is a frozen dataclass; its fields are its options, and `name` is what the database calls it.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    name: ClassVar[str]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Make one of the options that a reactor's config gives.

        Raises
        ------
        FusionError
            There is no such option, or its value does not fit.
        """
        return parsed(cls, options, f"options of the strategy {cls.name!r}")

    @abstractmethod
    def fuse(self, operation: Operation) -> Fused:
        """Ask members and make one answer of theirs.

        Called outside any transaction. Decisions are noted by `Operation.note`, in their order; all chance comes from
        `Operation.random`, so that a replay decides alike.

        Raises
        ------
        OperationFailed
            No answer can be made of what the members gave.
        """

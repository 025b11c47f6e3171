"""What a reactor is after, and how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from arc_halo.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Iterable

GoalStatus = Literal["open", "done", "dropped"]


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal.

    Attributes
    ----------
    name
        Unique among the goals of a state.
    status
        ``open``, ``done`` or ``dropped``.
    progress
        From 0 to 1; of what is done it is 1.
    """

    name: str
    status: GoalStatus = "open"
    progress: float = 0.0

    @classmethod
    def of(cls, given: Goal | str | Mapping[str, Any]) -> Goal:
        """Take a name, or the values of JSON that are stored.

        Raises
        ------
        FusionError
            There is no name, another key, no such status, or no such progress.
        """
        if isinstance(given, str):
            given = cls(given)
        if not isinstance(given, Goal):
            if not isinstance(given, Mapping):
                raise FusionError(f"a goal is a name, a Goal or a mapping like one, not a {type(given).__name__}")
            unknown = given.keys() - {"name", "status", "progress"}
            if unknown or "name" not in given:
                raise FusionError(f"a goal has a name, and may have status and progress; this one has {sorted(given)}")
            by_default = 1.0 if given.get("status") == "done" else 0.0
            given = cls(given["name"], given.get("status", "open"), given.get("progress", by_default))
        return given._checked()

    def _checked(self) -> Goal:
        if not isinstance(self.name, str) or not self.name.strip():
            raise FusionError(f"a goal has a name, not {self.name!r:.80}")
        if self.status not in get_args(GoalStatus):
            raise FusionError(f"the goal {self.name!r:.80} is open, done or dropped, not {self.status!r:.80}")
        is_number = isinstance(self.progress, int | float) and not isinstance(self.progress, bool)
        if not is_number or not 0 <= self.progress <= 1:
            raise FusionError(f"the progress of the goal {self.name!r:.80} is from 0 to 1, not {self.progress!r:.80}")
        if self.status == "done" and self.progress != 1:
            raise FusionError(f"the goal {self.name!r:.80} is done, so its progress is 1, not {self.progress}")
        return Goal(self.name, self.status, float(self.progress))

    def to_json(self) -> dict[str, Any]:
        """What is stored of it."""
        return asdict(self)


def checked_goals(given: Iterable[Goal | str | Mapping[str, Any]]) -> tuple[Goal, ...]:
    """Goals in their order.

    Raises
    ------
    FusionError
        One makes no sense, or two have the same name.
    """
    goals = tuple(Goal.of(each) for each in given)
    names = [goal.name for goal in goals]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FusionError(f"goals have names of their own; {', '.join(twice)} is there twice")
    return goals

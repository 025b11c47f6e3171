"""What is different in two versions of a state."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from arc_halo.fusion.state import State

_SHOWN: Final = 80


@dataclass(frozen=True, slots=True)
class Change:
    """What is different in one part.

    Attributes
    ----------
    added, removed
        Values by their places.
    changed
        The value before and the one after, by their places.
    """

    added: Mapping[str, Any]
    removed: Mapping[str, Any]
    changed: Mapping[str, tuple[Any, Any]]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is."""
        return not (self.added or self.removed or self.changed)

    def to_json(self) -> dict[str, Any]:
        """As values of JSON."""
        changed = {place: {"before": before, "after": after} for place, (before, after) in self.changed.items()}
        return {"added": dict(self.added), "removed": dict(self.removed), "changed": changed}


@dataclass(frozen=True, slots=True)
class StateDiff:
    """What is different in a version from another.

    Places within ``context`` and ``memory`` are JSON pointers (RFC 6901), as ``/user/name``; lists are compared as a
    whole. Those of ``attention_focus`` are its keys, those of ``goals`` their names.
    """

    before: int
    after: int
    context: Change
    memory: Change
    attention_focus: Change
    goals: Change

    @property
    def parts(self) -> dict[str, Change]:
        """The four, by name."""
        return {
            "context": self.context,
            "memory": self.memory,
            "attention_focus": self.attention_focus,
            "goals": self.goals,
        }

    @property
    def is_empty(self) -> bool:
        """Whether both have the same content."""
        return all(each.is_empty for each in self.parts.values())

    @property
    def summary(self) -> str:
        """In sentences, one a line."""
        if self.is_empty:
            return f"Versions {self.before} and {self.after} have the same content."
        said = [f"From version {self.before} to version {self.after}:"]
        for part, change in self.parts.items():
            said += _sentences(part.replace("_", " "), change)
        return "\n".join(said)

    def to_json(self) -> dict[str, Any]:
        """As values of JSON."""
        parts = {name: each.to_json() for name, each in self.parts.items()}
        return {"before": self.before, "after": self.after, "parts": parts, "summary": self.summary}


def diff_states(before: State, after: State) -> StateDiff:
    """Compare two versions, whatever branches they are of.

    Examples
    --------
    >>> print(diff_states(read_state(session, "r", 0), read_state(session, "r")).summary)  # doctest: +SKIP
    From version 0 to version 1:
    The goal "answer" is done now; its progress went from 0.5 to 1.
    """
    goals = [{goal.name: goal.to_json() for goal in state.goals} for state in (before, after)]
    return StateDiff(
        before.version,
        after.version,
        context=_change(dict(_leaves(before.context)), dict(_leaves(after.context))),
        memory=_change(dict(_leaves(before.memory)), dict(_leaves(after.memory))),
        attention_focus=_change(before.attention_focus, after.attention_focus),
        goals=_change(goals[0], goals[1]),
    )


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, each in value.items():
        place = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
        if isinstance(each, dict) and each:
            yield from _leaves(each, place)
        else:
            yield place, each


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> Change:
    return Change(
        added={place: each for place, each in after.items() if place not in before},
        removed={place: each for place, each in before.items() if place not in after},
        changed={
            place: (before[place], each)
            for place, each in after.items()
            if place in before and not _is_same(before[place], each)
        },
    )


def _is_same(one: Any, other: Any) -> bool:
    """Of JSON: true is not 1 there, but 1.0 is 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(each, other[key]) for key, each in one.items())
    return bool(one == other)


def _sentences(part: str, change: Change) -> Iterator[str]:
    if part == "goals":
        yield from _goal_sentences(change)
        return
    for place, value in change.added.items():
        yield f"The {part} has {place} now: {_short(value)}."
    for place, value in change.removed.items():
        yield f"The {part} has no {place} any more; it was {_short(value)}."
    for place, (was, now) in change.changed.items():
        yield f"In the {part}, {place} went from {_short(was)} to {_short(now)}."


def _goal_sentences(change: Change) -> Iterator[str]:
    for name, goal in change.added.items():
        yield f'There is a new goal "{name}", {goal["status"]}, with a progress of {goal["progress"]:g}.'
    for name, goal in change.removed.items():
        yield f'The goal "{name}" is there no more; it was {goal["status"]}.'
    for name, (was, now) in change.changed.items():
        said = f"is {now['status']} now" if was["status"] != now["status"] else f"is still {now['status']}"
        if was["progress"] != now["progress"]:
            said += f"; its progress went from {was['progress']:g} to {now['progress']:g}"
        yield f'The goal "{name}" {said}.'


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    said = json.dumps(value, ensure_ascii=False)
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."

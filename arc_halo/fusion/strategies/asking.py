"""Who answers, and how several samples of a member are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from arc_halo.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arc_halo.fusion.operations.calls import Call, Member
    from arc_halo.fusion.operations.operation import Operation

_SEEDS: Final = 1 << 31


def answering(operation: Operation) -> list[Member]:
    """The members that answer: primary and secondary ones, in the order of priority.

    Raises
    ------
    FusionError
        There is none.
    """
    members = operation.with_role("primary", "secondary")
    if not members:
        raise FusionError(f"{operation.plan.name} has no enabled member in the role primary or secondary")
    return members


def judges(operation: Operation) -> list[Member]:
    """The members that judge answers of others, in the order of priority."""
    return operation.with_role("judge", "validator")


def ask_samples(
    operation: Operation, members: Sequence[Member], samples: int, temperature: float, **changes: Any
) -> list[Call]:
    """Ask each member for several answers that differ by their seeds, drawn from `Operation.random`.

    One sample is the question as it is. Members of level N are asked for one after another, as their protocol says, and
    for no more once they fail.

    Returns
    -------
    list of Call
        All of the first member, all of the second, and so on.
    """
    if samples == 1:
        return operation.ask_all([(member, operation.question(**changes)) for member in members])
    seeds = [operation.random.randrange(_SEEDS) for _ in range(samples)]
    questions = [operation.question(**{"temperature": temperature} | changes | {"seed": seed}) for seed in seeds]
    at_once = [member for member in members if member.level != "N"]
    waiting = [member for member in members if member.level == "N"]
    calls: list[Call] = []
    for number, question in enumerate(questions):
        asked = [(member, question) for member in waiting]
        if number == 0:
            asked += [(member, each) for member in at_once for each in questions]
        made = operation.ask_all(asked)
        waiting = [call.member for call in made if call.is_answered and call.member in waiting]
        calls += made
    order = {member.id: place for place, member in enumerate(members)}
    return sorted(calls, key=lambda call: (order[call.member.id], call.position))

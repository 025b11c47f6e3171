"""What members answer alone, where the operation's answer is one that they wrote together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arc_halo.fusion.operations.operation import Operation


def ask_alone(operation: Operation) -> None:
    """Ask each member that had a part in a joint answer for one of its own: gain and oracle gap are counted from those.

    It is asked once the joint answer is there, and as long as the budget has room; with what it says nothing is done
    but to measure it. Members that do not answer the question itself, and those that did so alone, are not asked.
    """
    joint, own = {}, set()
    for call in operation.calls:
        if call.answer is None or call.question.prompt != operation.input.prompt:
            continue
        if call.answer.is_joint:
            joint[call.member.id] = call.member
        else:
            own.add(call.member.id)
    operation.ask_all([(member, operation.question()) for each, member in joint.items() if each not in own])

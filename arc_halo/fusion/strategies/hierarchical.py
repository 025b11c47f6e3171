"""The interaction graph is walked: answers feed members, validators send them back, others add context."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from arc_halo.errors import FusionError, OperationFailed
from arc_halo.fusion.graph import Graph
from arc_halo.fusion.strategies.protocol import Fused, Strategy
from arc_halo.fusion.strategies.templates import check_places, filled

if TYPE_CHECKING:
    import uuid

    from arc_halo.fusion.operations import Call, Member, Operation
    from arc_halo.fusion.plan import Edge


@dataclass(frozen=True)
class Hierarchical(Strategy):
    """Members answer in the topological order of ``feeds_into``, all that are ready at once.

    Before a member is asked, those that augment it are, and their answers become part of its prompt. Those that
    validate it judge its answer: a rejection sends it back with what they said, so many times at most, as in iterative
    refinement with feedback (Madaan et al., Self-Refine, 2023). The answer is that of the member that feeds nobody; of
    several, the heaviest one's.

    A wave begins when the one before has ended: one slow member makes those wait that do not need it, and in return the
    order of calls, and so a replay, does not depend on who is fast.

    Attributes
    ----------
    max_rejections
        How often an answer is sent back; the one after that is taken as it is, and the trace says so.
    accepts
        Pattern of regular expressions at the beginning of a validator's answer that means that it agrees.
    on_failure
        ``use_rest``: who depends on a member without an answer goes on without it. ``fail``: the operation has failed.
    context, feed, verdict, feedback
        Prompts: what augments a question; what feeds it; what a validator is asked; what a member is told that is sent
        back. The edge's config may have a ``label`` in the place of the source's name.
    """

    name: ClassVar[str] = "hierarchical"

    max_rejections: int = 2
    accepts: str = r"\s*(accept|agree|yes|ok|correct|true)\b"
    on_failure: Literal["use_rest", "fail"] = "use_rest"
    context: str = "{label}:\n{text}\n\n{prompt}"
    feed: str = "{prompt}\n\n{label}:\n{text}"
    verdict: str = "Question:\n{prompt}\n\nAnswer:\n{answer}\n\nAccept or reject it, and say why."
    feedback: str = "{prompt}\n\nThis answer was rejected:\n{answer}\n\nThe reason given:\n{reason}\n\nAnswer again."

    def __post_init__(self) -> None:
        if self.max_rejections < 0:
            raise FusionError(f"an answer is sent back 0 times or more, not {self.max_rejections}")
        try:
            re.compile(self.accepts)
        except re.error as error:
            raise FusionError(f"{self.accepts!r} is no pattern: {error}") from error
        check_places("context", self.context, "prompt", "label", "text")
        check_places("feed", self.feed, "prompt", "label", "text")
        check_places("verdict", self.verdict, "prompt", "answer")
        check_places("feedback", self.feedback, "prompt", "answer", "reason")

    def fuse(self, operation: Operation) -> Fused:
        """As `Strategy.fuse`."""
        graph = Graph.of(operation.members, operation.edges)
        answers: dict[uuid.UUID, Call] = {}
        for wave in graph.waves:
            prompts = self._prompts(operation, graph, wave, answers)
            calls = operation.ask_all((member, operation.question(prompts[member.id])) for member in wave)
            for member, call in zip(wave, self._validated(operation, graph, prompts, calls), strict=True):
                if call.is_answered:
                    answers[member.id] = call
                elif self.on_failure == "fail":
                    raise OperationFailed(f"{member.name} gave no answer: {call.error}")
        final = [answers[member.id] for member in graph.sinks if member.id in answers]
        if not final:
            raise OperationFailed(f"none of {', '.join(each.name for each in graph.sinks)} answered")
        chosen = max(final, key=lambda call: call.member.weight)  # the first of equals, which has priority
        operation.note("chosen", member=chosen.member.name, position=chosen.position)
        return Fused(chosen.text, chosen.score, chosen.member.id)

    def _prompts(
        self, operation: Operation, graph: Graph, wave: tuple[Member, ...], answers: dict[uuid.UUID, Call]
    ) -> dict[uuid.UUID, str]:
        """What each member of a wave is asked: the question, what feeds it, and what others add."""
        prompts = dict.fromkeys((member.id for member in wave), operation.input.prompt)

        def put(template: str, edge: Edge, call: Call) -> None:
            label, prompt = str(edge.config.get("label", call.member.name)), prompts[edge.target_id]
            prompts[edge.target_id] = filled(template, prompt=prompt, label=label, text=call.text)
            _note(operation, edge, position=call.position)

        for member in wave:
            for edge in graph.feeds.get(member.id, []):
                if edge.source_id in answers:
                    put(self.feed, edge, answers[edge.source_id])
        edges = [edge for member in wave for edge in graph.augments.get(member.id, [])]
        by_id = {member.id: member for member in operation.members}
        calls = operation.ask_all(
            (by_id[edge.source_id], operation.question(prompts[edge.target_id])) for edge in edges
        )
        for edge, call in zip(edges, calls, strict=True):
            if call.is_answered:
                put(self.context, edge, call)
        return prompts

    def _validated(
        self, operation: Operation, graph: Graph, prompts: dict[uuid.UUID, str], calls: list[Call]
    ) -> list[Call]:
        """The calls of a wave, those that were sent back replaced by the last ones."""
        last = {call.member.id: call for call in calls}
        fresh = calls
        for attempt in range(self.max_rejections + 1):
            rejected = self._rejected(operation, graph, prompts, fresh)
            if not rejected or attempt == self.max_rejections:
                for member_id in rejected:
                    operation.note("taken_though_rejected", member=last[member_id].member.name)
                break
            asked = []
            for member_id, reason in rejected.items():
                call = last[member_id]
                told = filled(self.feedback, prompt=prompts[member_id], answer=call.text, reason=reason)
                asked.append((call.member, operation.question(told)))
            again = operation.ask_all(asked)
            fresh = [call for call in again if call.is_answered]
            for call in again:
                if call.is_answered:
                    last[call.member.id] = call
                else:  # what it said before is all there is
                    operation.note("taken_though_rejected", member=call.member.name)
        return [last[call.member.id] for call in calls]

    def _rejected(
        self, operation: Operation, graph: Graph, prompts: dict[uuid.UUID, str], calls: list[Call]
    ) -> dict[uuid.UUID, str]:
        """Why answers are sent back, by the id of the member; a validator that fails rejects nothing."""
        by_id = {member.id: member for member in operation.members}
        asked = [(call, edge) for call in calls if call.is_answered for edge in graph.validates.get(call.member.id, [])]
        verdicts = operation.ask_all(
            (
                by_id[edge.source_id],
                operation.question(filled(self.verdict, prompt=prompts[call.member.id], answer=call.text)),
            )
            for call, edge in asked
        )
        reasons: dict[uuid.UUID, list[str]] = {}
        for (call, edge), verdict in zip(asked, verdicts, strict=True):
            if not verdict.is_answered:
                continue
            is_accepted = re.match(self.accepts, verdict.text, re.IGNORECASE) is not None
            verdict.score = float(is_accepted)
            _note(operation, edge, position=verdict.position, accepted=is_accepted)
            if not is_accepted:
                reasons.setdefault(call.member.id, []).append(verdict.text)
        return {member_id: "\n".join(each) for member_id, each in reasons.items()}


def _note(operation: Operation, edge: Edge, **details: int) -> None:
    names = {member.id: member.name for member in operation.members}
    source, target = names[edge.source_id], names[edge.target_id]
    operation.note("edge", interaction=edge.kind, source=source, target=target, **details)

"""The interaction graph of a reactor, in the order in which it is walked."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from arc_halo.errors import FusionError

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Sequence

    from arc_halo.fusion.operations import Member
    from arc_halo.fusion.plan import Edge


@dataclass(frozen=True)
class Graph:
    """Who feeds, validates and augments whom.

    Attributes
    ----------
    waves
        Members of the flow, each wave being fed by earlier ones only; within one, in the order of members.
    sinks
        Members of the flow that feed nobody: their answers are those of the reactor.
    feeds, validates, augments
        Edges by the id of their target, in the order of their sources.
    """

    waves: tuple[tuple[Member, ...], ...]
    sinks: tuple[Member, ...]
    feeds: dict[uuid.UUID, list[Edge]]
    validates: dict[uuid.UUID, list[Edge]]
    augments: dict[uuid.UUID, list[Edge]]

    @classmethod
    def of(cls, members: Sequence[Member], edges: Iterable[Edge]) -> Graph:
        """Order the members of a graph (Kahn, 1962).

        Who only validates or augments is not part of the flow. Edges from or to members that are not given, as those
        that are disabled, are left out.

        Raises
        ------
        FusionError
            ``feeds_into`` has a cycle, which the database refuses, or nobody is left in the flow.
        """
        rank = {member.id: number for number, member in enumerate(members)}
        by_kind: dict[str, dict[uuid.UUID, list[Edge]]] = defaultdict(lambda: defaultdict(list))
        known = [edge for edge in edges if edge.source_id in rank and edge.target_id in rank]
        for edge in sorted(known, key=lambda each: rank[each.source_id]):
            by_kind[edge.kind][edge.target_id].append(edge)
        feeds, feeders = by_kind["feeds_into"], set()
        for each in feeds.values():
            feeders |= {edge.source_id for edge in each}
        beside = {
            edge.source_id for kind in ("validates", "augments") for each in by_kind[kind].values() for edge in each
        }
        flow = [member for member in members if member.id in feeders or member.id in feeds or member.id not in beside]
        if not flow:
            raise FusionError("all members validate or augment others: nobody is left to answer")
        waves: list[tuple[Member, ...]] = []
        done: set[uuid.UUID] = set()
        while len(done) < len(flow):
            ready = tuple(
                member
                for member in flow
                if member.id not in done and all(edge.source_id in done for edge in feeds.get(member.id, []))
            )
            if not ready:
                raise FusionError("feeds_into has a cycle: nobody can be asked first")
            waves.append(ready)
            done |= {member.id for member in ready}
        sinks = tuple(member for member in flow if member.id not in feeders)
        return cls(tuple(waves), sinks, dict(feeds), dict(by_kind["validates"]), dict(by_kind["augments"]))

"""Where members stand in a picture: columns from left to right, and ways between them that cross no member."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any, Final, cast

from arc_halo.errors import FusionError
from arc_halo.fusion.graph import Graph

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence

    from arc_halo.fusion.plan import Edge, MemberPlan, Plan

_SWEEPS: Final = 8
Slot = tuple[int, float]
"""A column, and a height in it; a member takes 1 of that."""
_WAY_HEIGHT: Final = 0.5


@dataclass(frozen=True, slots=True)
class Way:
    """An edge, and the slots it passes from its source to its target; a slot between them is nobody else's."""

    edge: Edge
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each member stands, and the way of each edge.

    Attributes
    ----------
    column_count, height
        How many columns there are, and how high the highest of them is.
    waves
        Members that are asked at once, and those that only validate or augment.
    """

    slots: Mapping[uuid.UUID, Slot]
    ways: tuple[Way, ...]
    column_count: int
    height: float
    waves: tuple[tuple[MemberPlan, ...], ...]
    beside: tuple[MemberPlan, ...]


def lay_out(plan: Plan) -> Layout:
    """Columns are the waves of `Graph`; who only validates or augments stands in one of its own before its target.

    An edge over several columns has a slot in each of them, as in layered drawings (Sugiyama, Tagawa & Toda 1981,
    Methods for Visual Understanding of Hierarchical System Structures); slots are ordered by the means of their
    neighbours.
    """
    known = {member.id for member in plan.members}
    edges = [each for each in plan.edges if {each.source_id, each.target_id} <= known]
    waves = _waves(plan.members, edges)
    flow = {member.id for wave in waves for member in wave}
    beside = tuple(member for member in plan.members if member.id not in flow)
    columns = _columns(waves, beside, edges)
    queues = _queues(plan.members, columns)
    chains = [_chain(number, each, columns, queues) for number, each in enumerate(edges)]
    _order(queues, chains)
    slots = _slots(queues)
    ways = tuple(Way(edge, tuple(slots[each] for each in chain)) for edge, chain in zip(edges, chains, strict=True))
    height = max((2 * abs(slots[each][1]) + 1 for queue in queues for each in queue), default=0.0)
    return Layout({each: slots[each] for each in columns}, ways, len(queues), height, waves, beside)


def _waves(members: Sequence[MemberPlan], edges: Sequence[Edge]) -> tuple[tuple[MemberPlan, ...], ...]:
    if not members:
        return ()
    by_id = {member.id: member for member in members}
    try:
        graph = Graph.of(cast("Any", members), edges)  # it looks at ids alone
    except FusionError:
        return (tuple(members),)  # nobody is left to answer, and that can be seen
    return tuple(tuple(by_id[member.id] for member in wave) for wave in graph.waves)


def _columns(
    waves: Sequence[Sequence[MemberPlan]], beside: Sequence[MemberPlan], edges: Sequence[Edge]
) -> dict[uuid.UUID, int]:
    """The column of each member, without gaps; even places are of those beside the flow."""
    places = {member.id: 2 * number + 1 for number, wave in enumerate(waves) for member in wave}
    for member in beside:
        targets = [places[e.target_id] for e in edges if e.source_id == member.id and places.get(e.target_id, 0) % 2]
        places[member.id] = min(targets, default=1) - 1
    numbers = {place: number for number, place in enumerate(sorted(set(places.values())))}
    return {each: numbers[place] for each, place in places.items()}


def _queues(members: Sequence[MemberPlan], columns: Mapping[uuid.UUID, int]) -> list[list[Any]]:
    queues: list[list[Any]] = [[] for _ in set(columns.values())]
    for member in members:
        queues[columns[member.id]].append(member.id)
    return queues


def _chain(number: int, edge: Edge, columns: Mapping[uuid.UUID, int], queues: list[list[Any]]) -> list[Any]:
    """The ends of an edge, and a place of its own in each column between."""
    first, last = columns[edge.source_id], columns[edge.target_id]
    step = 1 if last >= first else -1
    between = [(number, column) for column in range(first + step, last, step)]
    for each in between:
        queues[each[1]].append(each)
    return [edge.source_id, *between, edge.target_id]


def _order(queues: list[list[Any]], chains: Sequence[Sequence[Any]]) -> None:
    """Sort each column by the heights of neighbours in the one before, then of those behind, and keep the best."""
    steps = [pair for chain in chains for pair in pairwise(chain)]
    best, fewest = [list(queue) for queue in queues], _crossings(queues, steps)
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        for number in range(1, len(queues)) if forward else range(len(queues) - 2, -1, -1):
            beside = queues[number - 1 if forward else number + 1]
            _sort(queues[number], beside, steps)
        crossings = _crossings(queues, steps)
        if crossings < fewest:
            best, fewest = [list(queue) for queue in queues], crossings
    queues[:] = best


def _sort(queue: list[Any], beside: Sequence[Any], steps: Sequence[tuple[Any, Any]]) -> None:
    places = {each: number / len(beside) for number, each in enumerate(beside)}
    own = {each: number / len(queue) for number, each in enumerate(queue)}
    around: dict[Any, list[float]] = defaultdict(list)
    for one, other in steps:
        for each, neighbour in ((one, other), (other, one)):
            if each in own and neighbour in places:
                around[each].append(places[neighbour])
    queue.sort(key=lambda each: sum(around[each]) / len(around[each]) if around[each] else own[each])


def _crossings(queues: Sequence[Sequence[Any]], steps: Sequence[tuple[Any, Any]]) -> int:
    slots = _slots(queues)
    lines = [sorted((slots[one], slots[other])) for one, other in steps]
    return sum(
        (one[0][1] - other[0][1]) * (one[1][1] - other[1][1]) < 0
        for one, other in combinations(lines, 2)
        if one[0][0] == other[0][0] != one[1][0]
    )


def _slots(queues: Sequence[Sequence[Any]]) -> dict[Any, Slot]:
    """The first of a column is the highest, and its middle is at 0."""
    slots = {}
    for column, queue in enumerate(queues):
        heights = [_WAY_HEIGHT if isinstance(each, tuple) else 1.0 for each in queue]
        top = sum(heights) / 2
        for number, each in enumerate(queue):
            slots[each] = (column, top - sum(heights[:number]) - heights[number] / 2)
    return slots

"""One member is asked: the one that did best on questions like this one, or the one that did best so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from sqlalchemy import bindparam, text

from arc_halo.errors import FusionError, OperationFailed
from arc_halo.fusion.strategies.protocol import Fused, Strategy
from arc_halo.schema.types import Vector

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session

    from arc_halo.fusion.operations import Member, Operation

# Operations whose answers have a quality, the ones most like the question where it has a vector. Replays say nothing
# new, and in a replay only what was over when the first began is known; a quality that was told since counts, too.
_ALIKE: Final = text("""
SELECT m.member_id, greatest(0, 1 - (o.input_vector OPERATOR(public.<=>) :vector)) AS likeness, m.quality,
       coalesce(m.cost, 0) AS cost
  FROM (SELECT p.id, p.input_vector
          FROM arc_halo.fusion_operations AS p
         WHERE p.reactor_id = :reactor_id AND p.input_dimension = :dimension AND p.replay_of IS NULL
           AND (CAST(:as_of AS timestamptz) IS NULL
                OR p.started_at + make_interval(secs => p.execution_seconds) <= :as_of)
           AND EXISTS (SELECT FROM arc_halo.fusion_operation_members AS q
                        WHERE q.operation_id = p.id AND q.quality IS NOT NULL)
         ORDER BY p.input_vector OPERATOR(public.<=>) :vector, p.id
         LIMIT :count) AS o
  JOIN arc_halo.fusion_operation_members AS m ON m.operation_id = o.id AND m.quality IS NOT NULL
 ORDER BY o.id, m.position
""").bindparams(bindparam("vector", type_=Vector()))
_ALL: Final = text("""
SELECT m.member_id, 1.0::float8 AS likeness, m.quality, coalesce(m.cost, 0) AS cost
  FROM arc_halo.fusion_operations AS o
  JOIN arc_halo.fusion_operation_members AS m ON m.operation_id = o.id AND m.quality IS NOT NULL
 WHERE o.reactor_id = :reactor_id AND o.replay_of IS NULL
   AND (CAST(:as_of AS timestamptz) IS NULL
        OR o.started_at + make_interval(secs => o.execution_seconds) <= :as_of)
 ORDER BY o.started_at DESC, o.id DESC, m.position
 LIMIT :count
""")


@dataclass(frozen=True)
class Routing(Strategy):
    """Ask the member whose answers are expected to be best for their cost, another one now and then.

    ``knn`` averages the quality of each member's answers to the questions nearest in meaning, weighted by likeness
    (nearest neighbours were hard to beat as a router: Hu et al., RouterBench, 2024); it needs the reactor's ``embed``.
    ``bandit`` averages over the last operations, whatever was asked: epsilon-greedy (Sutton & Barto, 2018, 2.2). Both
    start from ``prior``, as if each member had given ``prior_count`` answers of that quality.

    The member is chosen by chance, and the probability of the choice is stored with it: so that
    `arc_halo.fusion.learning.estimate_value` can tell what another way of choosing would have been worth.

    Attributes
    ----------
    neighbors
        How many operations are looked at.
    epsilon
        Share of operations that ask a member at random, each as likely as the other.
    cost_weight
        How much quality a unit of cost is worth.
    fallbacks
        How many of the next best members are asked, one after another, where the chosen one gives no answer.
    """

    name: ClassVar[str] = "routing"

    method: Literal["knn", "bandit"] = "knn"
    neighbors: int = 32
    epsilon: float = 0.1
    prior: float = 0.5
    prior_count: float = 1.0
    cost_weight: float = 0.0
    fallbacks: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise FusionError(f"epsilon is a share from 0 to 1, not {self.epsilon}")
        if self.neighbors < 1 or self.prior_count <= 0 or self.fallbacks < 0:
            raise FusionError("neighbors are 1 or more, prior_count is more than 0, fallbacks are 0 or more")

    def fuse(self, operation: Operation) -> Fused:
        """As `Strategy.fuse`.

        Raises
        ------
        FusionError
            ``knn`` without vectors: open the reactor with ``embed``.
        """
        members = operation.with_role("primary", "secondary") or list(operation.members)
        values = self._values(operation, members)
        ranked = sorted(members, key=lambda member: -values[member.id])  # stable: of equals the one with priority
        explores = operation.random.random() < self.epsilon
        chosen = operation.random.choice(members) if explores else ranked[0]
        operation.note(
            "routed",
            member=chosen.name,
            by=self.method,
            explored=explores,
            values={member.name: round(values[member.id], 6) for member in members},
        )
        rest = [member for member in ranked if member is not chosen][: self.fallbacks]
        for number, member in enumerate([chosen, *rest]):
            call = operation.ask(member, operation.question())
            if number == 0:
                call.propensity = self.epsilon / len(members) + (1 - self.epsilon) * (member is ranked[0])
            if call.is_answered:
                call.score = values[member.id]
                return Fused(call.text, values[member.id], member.id)
            operation.note("fell_back", member=member.name, status=call.status)
        raise OperationFailed("no member that was asked answered")

    def _values(self, operation: Operation, members: list[Member]) -> dict[uuid.UUID, float]:
        """Expected quality of each member's answer, less what it costs."""
        asked: dict[str, object] = {
            "reactor_id": operation.plan.id,
            "count": self.neighbors,
            "as_of": operation.as_of,
        }
        statement = _ALL
        if self.method == "knn":
            if operation.input_vector is None:
                raise FusionError("routes by likeness need vectors: open the reactor with embed=, or say method=bandit")
            statement = _ALIKE
            asked |= {"vector": operation.input_vector, "dimension": len(operation.input_vector)}

        def look(session: Session) -> list[tuple[uuid.UUID, float, float, float]]:
            return [tuple(row) for row in session.execute(statement, asked)]

        weight = dict.fromkeys((member.id for member in members), self.prior_count)
        total = {member_id: self.prior * each for member_id, each in weight.items()}
        cost = dict.fromkeys(weight, 0.0)
        for member_id, likeness, quality, spent in operation.read(look):
            if member_id in weight:
                weight[member_id] += likeness
                total[member_id] += likeness * quality
                cost[member_id] += likeness * spent
        return {each: (total[each] - self.cost_weight * cost[each]) / weight[each] for each in weight}

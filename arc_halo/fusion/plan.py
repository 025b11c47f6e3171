"""A reactor as it is in the database now: members, edges, state version; what an operation is run by."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from sqlalchemy import text

from arc_halo.errors import FusionError, ReactorNotFound
from arc_halo.fusion.members.protocol import Question
from arc_halo.schema.columns import TENANT_ID

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

Parsed = TypeVar("Parsed")
Interaction = Literal["feeds_into", "validates", "augments"]

# One round trip for each operation: members may be changed while a reactor runs.
_PLAN: Final = text("""
SELECT r.id, r.name, r.strategy, r.status, r.config, r.graph_version,
       (SELECT max(s.version) FROM arc_halo.cognitive_state AS s WHERE s.reactor_id = r.id) AS state_version,
       (SELECT coalesce(jsonb_agg(jsonb_build_object(
                   'id', m.id, 'name', m.name, 'role', m.role, 'weight', m.weight, 'priority', m.priority,
                   'endpoint', m.endpoint, 'config', m.config, 'model_id', m.model_id,
                   'weights_digest', encode(w.weights_digest, 'hex'), 'model_status', w.status,
                   'model', w.name || '@' || w.version)
                   ORDER BY m.priority, m.name), '[]')
          FROM arc_halo.reactor_models AS m
          LEFT JOIN arc_halo.models AS w ON w.id = m.model_id
         WHERE m.reactor_id = r.id AND m.is_enabled) AS members,
       (SELECT array_agg(m.name ORDER BY m.name)
          FROM arc_halo.reactor_models AS m
         WHERE m.reactor_id = r.id AND NOT m.is_enabled) AS disabled,
       (SELECT coalesce(jsonb_agg(jsonb_build_object(
                   'source_id', e.source_id, 'target_id', e.target_id, 'kind', e.interaction_type, 'config', e.config)
                   ORDER BY e.id), '[]')
          FROM arc_halo.model_interaction_graph AS e
         WHERE e.reactor_id = r.id) AS edges
  FROM arc_halo.cognitive_fusion_reactors AS r
 WHERE r.tenant_id = :tenant_id AND (r.name = :name OR r.id = :id)
""")


@dataclass(frozen=True, slots=True)
class MemberPlan:
    """A member as its row says.

    Attributes
    ----------
    model
        ``name@version`` of the version that answers; None of an endpoint.
    weights_digest
        Of that version now, 32 bytes.
    """

    id: uuid.UUID
    name: str
    role: str
    weight: float
    priority: int
    endpoint: str | None
    config: Mapping[str, Any]
    model_id: uuid.UUID | None
    model: str | None
    weights_digest: bytes | None
    model_status: str | None

    @property
    def answers_by(self) -> str:
        """An endpoint, the version that answers, or an endpoint for a version."""
        endpoint = None if self.endpoint is None else f"endpoint {self.endpoint}"
        return " for ".join(filter(None, (endpoint, self.model)))


@dataclass(frozen=True, slots=True)
class Edge:
    """What goes from one member to another."""

    source_id: uuid.UUID
    target_id: uuid.UUID
    kind: Interaction
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Budget:
    """What an operation may use at most; None for as much as it wants.

    Attributes
    ----------
    seconds
        From its beginning; what has not answered by then is left.
    tokens
        Of questions and answers together, as far as members count them.
    cost
        In the currency of the members' price lists.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    seconds: float | None = None
    tokens: int | None = None
    cost: float | None = None

    def __post_init__(self) -> None:
        for name in ("seconds", "tokens", "cost"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise FusionError(f"a budget of {value} {name} is none: give 0 or more, or None")


@dataclass(frozen=True)
class _Defaults(Question):
    """A question of which a config says all but the prompt."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    prompt: str = ""


@dataclass(frozen=True)
class ReactorConfig:
    """The column ``config`` of a reactor.

    Attributes
    ----------
    options
        Of the strategy; each has its own.
    question
        Defaults of `Question`: ``max_tokens``, ``temperature``, ``system``, ``stop``, ...
    budget
        Of each operation that brings none.
    member_seconds
        How long a member may take to answer.
    min_answers
        How many members must answer; with less the operation has failed.
    measure_alone
        Whether members that write an answer together, token by token, are asked alone, too, where quality is measured:
        gain is counted from that, and it takes each about as much again.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    options: dict[str, Any] = field(default_factory=dict)
    question: dict[str, Any] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    member_seconds: float = 60.0
    min_answers: int = 1
    measure_alone: bool = True

    def __post_init__(self) -> None:
        if "prompt" in self.question:
            raise FusionError("question has defaults of questions, and a prompt is none: it comes with each input")
        parsed(_Defaults, self.question, "question")
        if not 0 < self.member_seconds < math.inf:
            raise FusionError(f"member_seconds are more than 0, and finite, not {self.member_seconds}")
        if self.min_answers < 0:
            raise FusionError(f"min_answers are 0 or more, not {self.min_answers}")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ReactorConfig:
        """Read what is stored.

        Raises
        ------
        FusionError
            A key that there is not, or a value of another type.
        """
        return parsed(cls, config, "the reactor's config")


@dataclass(frozen=True, slots=True)
class Plan:
    """A reactor as it is now; enabled members in the order of priority and name."""

    id: uuid.UUID
    name: str
    strategy: str
    status: str
    config: ReactorConfig
    stored_config: Mapping[str, Any]
    graph_version: int
    state_version: int | None
    members: tuple[MemberPlan, ...]
    edges: tuple[Edge, ...]
    disabled: tuple[str, ...] = ()
    """Names of members that are not asked."""


def load_plan(session: Session, reactor: str | uuid.UUID) -> Plan:
    """Read a reactor by its name or id, in one statement.

    Raises
    ------
    ReactorNotFound
        There is none.
    FusionError
        Its config cannot be read.
    """
    is_id = isinstance(reactor, uuid.UUID)
    asked = {"tenant_id": TENANT_ID, "name": None if is_id else reactor, "id": reactor if is_id else None}
    row = session.execute(_PLAN, asked).mappings().one_or_none()
    if row is None:
        raise ReactorNotFound(f"no reactor {str(reactor)!r}: `arc-halo reactor create` makes one")
    return Plan(
        id=row["id"],
        name=row["name"],
        strategy=row["strategy"],
        status=row["status"],
        config=ReactorConfig.of(row["config"]),
        stored_config=row["config"],
        graph_version=row["graph_version"],
        state_version=row["state_version"],
        members=tuple(_member(each) for each in row["members"]),
        edges=tuple(
            Edge(uuid.UUID(each["source_id"]), uuid.UUID(each["target_id"]), each["kind"], each["config"])
            for each in row["edges"]
        ),
        disabled=tuple(row["disabled"] or ()),
    )


def _member(said: dict[str, Any]) -> MemberPlan:
    digest, model_id = said["weights_digest"], said["model_id"]
    ids = {"id": uuid.UUID(said["id"]), "model_id": None if model_id is None else uuid.UUID(model_id)}
    return MemberPlan(**said | ids | {"weights_digest": None if digest is None else bytes.fromhex(digest)})


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:  # building one takes a millisecond
    return TypeAdapter(kind)


def parsed(kind: type[Parsed], said: Mapping[str, Any], what: str) -> Parsed:
    """A dataclass made of values of JSON.

    Raises
    ------
    FusionError
        They do not fit; the message names each key.
    """
    try:
        made: Parsed = _adapter(cast("Any", kind)).validate_python(dict(said))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in error.errors())
        raise FusionError(f"{what} cannot be read: {faults}") from error
    return made

"""Reactors, their members and the edges between them: made, changed and found."""

from __future__ import annotations

import math
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, get_args

from sqlalchemy import select

from arc_halo.errors import ConstraintViolation, FusionError, ReactorNotFound
from arc_halo.fusion.plan import Interaction, ReactorConfig
from arc_halo.fusion.strategies.known import strategy_named
from arc_halo.registry.naming import find_model
from arc_halo.schema import Model, ModelInteraction, Reactor, ReactorModel
from arc_halo.schema.columns import TENANT_ID
from arc_halo.schema.fusion import MEMBER_ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy.orm import Session

STATUSES: Final = ("draft", "active", "paused", "retired")
_SHOWN: Final = 10
_MAX_NAME_LENGTH: Final = 200  # four bytes each fit into an index
_MAX_PRIORITY: Final = 2**31 - 1


def create_reactor(
    session: Session, name: str, strategy: str, *, config: Mapping[str, Any] | None = None, status: str = "active"
) -> Reactor:
    """Make a reactor without members.

    Parameters
    ----------
    strategy
        One of `strategies`.
    config
        As `ReactorConfig`; its ``options`` are those of the strategy.

    Raises
    ------
    FusionError
        The name is taken or none, or there is no such strategy, option or status.
    """
    _check_name("a reactor", name)
    _check_one_of("status", status, STATUSES)
    said = dict(config or {})
    strategy_named(strategy).of(ReactorConfig.of(said).options)
    row = Reactor(name=name, strategy=strategy, config=said, status=status)
    taken = f"a reactor is called {name!r} already: take another name, or find_reactor to use it"
    with _translated(session, {"uq_cognitive_fusion_reactors_tenant_id_name": taken}):
        session.add(row)
    return row


def find_reactor(session: Session, reactor: Reactor | uuid.UUID | str) -> Reactor:
    """The reactor of a name or id.

    Raises
    ------
    ReactorNotFound
        There is none; the message lists what there is.
    """
    if isinstance(reactor, Reactor):
        return reactor
    if isinstance(reactor, uuid.UUID):
        found = session.get(Reactor, reactor)
        found = found if found is not None and found.tenant_id == TENANT_ID else None
    elif reactor.isprintable():
        found = session.scalars(select(Reactor).where(_is_own(), Reactor.name == reactor)).one_or_none()
    else:
        found = None
    if found is None:
        names = session.scalars(select(Reactor.name).where(_is_own()).order_by(Reactor.name).limit(_SHOWN + 1)).all()
        known = f"there are {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}" if names else ""
        raise ReactorNotFound(f"no reactor {str(reactor)!r:.220}; {known or 'create_reactor makes one'}")
    return found


def find_member(session: Session, reactor: Reactor | uuid.UUID | str, name: str) -> ReactorModel:
    """The member of a name, enabled or not.

    Raises
    ------
    ReactorNotFound, FusionError
        There is no such reactor, or no such member of it.
    """
    row = find_reactor(session, reactor)
    return _members(session, row, [name])[0]


def add_member(
    session: Session,
    reactor: Reactor | uuid.UUID | str,
    name: str,
    *,
    model: Model | uuid.UUID | str | None = None,
    endpoint: str | None = None,
    role: str = "primary",
    weight: float = 1.0,
    priority: int = 0,
    config: Mapping[str, Any] | None = None,
) -> ReactorModel:
    """Give a reactor another member.

    Parameters
    ----------
    model
        The version that answers; of ``name`` or ``name@alias`` the one that this is now, also later.
    endpoint
        Name of what answers, in the place of a model or beside it.
    role
        One of `MEMBER_ROLES`.
    weight
        How much its answer counts, 0 or more.
    priority
        Smaller goes first.

    Raises
    ------
    FusionError
        The name is taken, there is neither a model nor an endpoint, or a value does not fit.
    ReactorNotFound, ModelNotFound
        There is no such reactor or model.
    """
    _check_name("a member", name)
    _check_one_of("role", role, MEMBER_ROLES)
    if model is None and endpoint is None:
        raise FusionError(f"the member {name!r} needs a model (name@version) or an endpoint (a name) that answers")
    if not (math.isfinite(weight) and weight >= 0):
        raise FusionError(f"a weight is finite, and 0 or more, not {weight}")
    if not 0 <= priority <= _MAX_PRIORITY:
        raise FusionError(f"a priority is 0 or more, and smaller goes first; not {priority}")
    row = find_reactor(session, reactor)
    member = ReactorModel(
        reactor_id=row.id,
        name=name,
        model_id=None if model is None else find_model(session, model).id,
        endpoint=endpoint,
        role=role,
        weight=float(weight),
        priority=priority,
        config=dict(config or {}),
    )
    taken = f"{row.name} has a member {name!r} already: take another name, or disable_member that one"
    with _translated(session, {"uq_reactor_models_reactor_id_name": taken}):
        session.add(member)
    session.expire(row, ["members"])
    return member


def link_members(
    session: Session,
    reactor: Reactor | uuid.UUID | str,
    source: str,
    target: str,
    kind: str,
    *,
    config: Mapping[str, Any] | None = None,
) -> ModelInteraction:
    """Draw an edge from one member to another, by their names.

    Parameters
    ----------
    kind
        ``feeds_into`` (without cycles), ``validates`` or ``augments``.
    config
        What flows along the edge, and how.

    Raises
    ------
    FusionError
        There is no such member or kind, the edge is there already, or it would close a cycle.
    ReactorNotFound
        There is no such reactor.
    """
    _check_one_of("kind", kind, get_args(Interaction))
    if source == target:
        raise FusionError(f"an edge leads from one member to another, not from {source!r} to itself")
    row = find_reactor(session, reactor)
    ends = _members(session, row, [source, target])
    edge = ModelInteraction(
        reactor_id=row.id,
        source_id=ends[0].id,
        target_id=ends[1].id,
        interaction_type=kind,
        config=dict(config or {}),
    )
    sentences = {
        "uq_model_interaction_graph_edge": f"{row.name} has the edge {source} {kind} {target} already",
        "ck_model_interaction_graph_acyclic": (
            f"{source} cannot feed into {target}: {target} feeds into {source} already, directly or by others, and "
            "nobody would answer first; take that way apart, or draw an edge of another kind"
        ),
    }
    with _translated(session, sentences):
        session.add(edge)
    session.expire(row, ["graph_version", "interactions"])  # a trigger counts it
    return edge


def set_status(session: Session, reactor: Reactor | uuid.UUID | str, status: str) -> Reactor:
    """Activate, pause or retire a reactor; operations that run meanwhile end as they began.

    Raises
    ------
    FusionError, ReactorNotFound
        There is no such status, or no such reactor.
    """
    _check_one_of("status", status, STATUSES)
    row = find_reactor(session, reactor)
    row.status = status
    session.flush()
    return row


def disable_member(session: Session, reactor: Reactor | uuid.UUID | str, name: str) -> ReactorModel:
    """Ask a member no more. It stays with all it answered, as its edges do.

    Raises
    ------
    ReactorNotFound, FusionError
        There is no such reactor, or no such member of it.
    """
    member = find_member(session, reactor, name)
    member.is_enabled = False
    session.flush()
    return member


def _members(session: Session, reactor: Reactor, names: list[str]) -> list[ReactorModel]:
    """Members by name, in the order of the names, by one statement."""
    of_reactor = select(ReactorModel).where(ReactorModel.reactor_id == reactor.id)
    rows = {row.name: row for row in session.scalars(of_reactor.order_by(ReactorModel.priority, ReactorModel.name))}
    for name in names:
        if name not in rows:
            raise FusionError(
                f"{reactor.name} has no member {name!r}; "
                + (f"it has {', '.join(rows)}" if rows else "it has none: add_member adds one")
            )
    return [rows[name] for name in names]


@contextmanager
def _translated(session: Session, sentences: Mapping[str, str]) -> Iterator[None]:
    """Write what is added here; a constraint that refuses it becomes its sentence, and the session goes on."""
    try:
        with session.begin_nested():
            yield
    except ConstraintViolation as error:
        sentence = sentences.get(error.constraint or "")
        if sentence is None:
            raise
        raise FusionError(sentence) from error


def _is_own() -> Any:
    return Reactor.tenant_id == TENANT_ID


def _check_name(what: str, name: str) -> None:
    if not name.strip() or not name.isprintable() or len(name) > _MAX_NAME_LENGTH:
        raise FusionError(f"the name of {what} is of 1 to {_MAX_NAME_LENGTH} printable characters, not {name!r:.80}")


def _check_one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise FusionError(f"no {what} is called {value!r:.80}; there are {', '.join(allowed)}")

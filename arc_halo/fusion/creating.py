"""Reactors, their members and the edges between them: made, changed and found."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Unpack

from sqlalchemy import select
from sqlalchemy.orm.attributes import flag_modified

from arc_halo.errors import ConstraintViolation, FusionError, ReactorNotFound
from arc_halo.fusion.checks import (
    STATUSES,
    MemberChanges,
    check_edge,
    check_keys,
    check_member,
    check_name,
    check_one_of,
    check_reactor,
    checked_config,
    is_same,
)
from arc_halo.registry.naming import find_model, listed
from arc_halo.schema import Model, ModelInteraction, Reactor, ReactorModel
from arc_halo.schema.columns import TENANT_ID

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy.orm import Session


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
    check_name("a reactor", name)
    said = check_reactor(strategy, config, status)
    row = Reactor(name=name, strategy=strategy, config=said, status=status)
    taken = f"a reactor is called {name!r} already: take another name, or change that one"
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
        names = session.scalars(select(Reactor.name).where(_is_own()).order_by(Reactor.name)).all()
        known = f"there are {listed(names)}" if names else "there is none yet; make one first"
        raise ReactorNotFound(f"no reactor {str(reactor)!r:.220}; {known}")
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
    model, endpoint, role, weight, priority, config
        As of `MemberDefinition`.

    Raises
    ------
    FusionError
        The name is taken, there is neither a model nor an endpoint, or a value does not fit.
    ReactorNotFound, ModelNotFound
        There is no such reactor or model.
    """
    check_name("a member", name)
    said = {"model": model, "endpoint": endpoint, "role": role, "weight": weight, "priority": priority}
    check_member(name, said)
    stored = checked_config(f"the config of {name!r}", config)
    row = find_reactor(session, reactor)
    member = ReactorModel(
        reactor_id=row.id,
        name=name,
        model_id=None if model is None else find_model(session, model).id,
        endpoint=endpoint,
        role=role,
        weight=float(weight),
        priority=priority,
        config=stored,
    )
    taken = f"{row.name} has a member {name!r} already: take another name, or change that one"
    with _translated(session, {"uq_reactor_models_reactor_id_name": taken}):
        session.add(member)
    session.expire(row, ["members"])
    return member


def change_member(
    session: Session, reactor: Reactor | uuid.UUID | str, name: str, **changes: Unpack[MemberChanges]
) -> ReactorModel:
    """Make a member something else; what is not said stays as it is, and so does what operations kept of it.

    Parameters
    ----------
    changes
        ``model``, ``endpoint``, ``role``, ``weight``, ``priority`` and ``config`` as `add_member` takes them, None for
        no model, endpoint or config. With ``enabled=False`` it is asked no more, and stays with all it answered.

    Raises
    ------
    ReactorNotFound, ModelNotFound
        There is no such reactor or model.
    FusionError
        It has no such member, nothing would be left that answers, or a value does not fit.
    """
    check_keys(f"the member {name!r}", changes, MemberChanges.__annotations__)
    row = find_reactor(session, reactor)
    (member,) = _members(session, row, [name])
    columns = ("endpoint", "role", "weight", "priority")
    is_said: dict[str, Any] = {"model": member.model_id} | {each: getattr(member, each) for each in columns}
    said = is_said | changes
    check_member(name, said)
    enabled = changes.get("enabled", member.is_enabled)
    if not isinstance(enabled, bool):
        raise FusionError(f"the member {name!r} is enabled or not: True or False, not {enabled!r:.80}")
    config = checked_config(f"the config of {name!r}", changes.get("config", member.config))
    if "model" in changes:
        model = changes["model"]
        member.model_id = None if model is None else find_model(session, model).id
    for each in columns:
        setattr(member, each, said[each])
    member.is_enabled = enabled
    if not is_same(config, member.config):
        member.config = config
        flag_modified(member, "config")  # the ORM takes true for 1
    session.flush()
    session.expire(member, ["model"])
    session.expire(row, ["members"])  # their order
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
    check_edge(source, target, kind)
    stored = checked_config("the config of an edge", config)
    row = find_reactor(session, reactor)
    ends = _members(session, row, [source, target])
    edge = ModelInteraction(
        reactor_id=row.id,
        source_id=ends[0].id,
        target_id=ends[1].id,
        interaction_type=kind,
        config=stored,
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


def unlink_members(session: Session, reactor: Reactor | uuid.UUID | str, source: str, target: str, kind: str) -> None:
    """Take an edge away; operations that walked it say so as before.

    Raises
    ------
    FusionError
        There is no such member, kind or edge.
    ReactorNotFound
        There is no such reactor.
    """
    check_edge(source, target, kind)
    row = find_reactor(session, reactor)
    ends = _members(session, row, [source, target])
    edges = session.scalars(
        select(ModelInteraction).where(
            ModelInteraction.reactor_id == row.id,
            ModelInteraction.source_id == ends[0].id,
            ModelInteraction.target_id == ends[1].id,
        )
    ).all()
    edge = next((each for each in edges if each.interaction_type == kind), None)
    if edge is None:
        others = " or ".join(f"{source} {each.interaction_type} {target}" for each in edges)
        raise FusionError(f"{row.name} has no edge {source} {kind} {target}" + (f"; it has {others}" if others else ""))
    session.delete(edge)
    session.flush()
    session.expire(row, ["graph_version", "interactions"])  # a trigger counts it


def set_status(session: Session, reactor: Reactor | uuid.UUID | str, status: str) -> Reactor:
    """Activate, pause or retire a reactor; operations that run meanwhile end as they began.

    Raises
    ------
    FusionError, ReactorNotFound
        There is no such status, or no such reactor.
    """
    check_one_of("status", status, STATUSES)
    row = find_reactor(session, reactor)
    row.status = status
    session.flush()
    return row


def _members(session: Session, reactor: Reactor, names: list[str]) -> list[ReactorModel]:
    """Members by name, in the order of the names, by one statement."""
    of_reactor = select(ReactorModel).where(ReactorModel.reactor_id == reactor.id)
    rows = {row.name: row for row in session.scalars(of_reactor.order_by(ReactorModel.priority, ReactorModel.name))}
    for name in names:
        if name not in rows:
            raise FusionError(
                f"{reactor.name} has no member {name!r}; "
                + (f"it has {listed(list(rows))}" if rows else "it has none yet")
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

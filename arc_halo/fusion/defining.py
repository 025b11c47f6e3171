"""A reactor as a whole: said once, and made so whatever it was."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm.attributes import flag_modified

from arc_halo.errors import FusionError
from arc_halo.fusion.checks import (
    MemberDefinition,
    check_edge,
    check_keys,
    check_member,
    check_name,
    check_reactor,
    checked_config,
    is_same,
)
from arc_halo.registry.naming import find_model_ids, listed
from arc_halo.schema import Model, ModelInteraction, Reactor, ReactorModel
from arc_halo.schema.columns import TENANT_ID

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy.orm import Session

__all__ = ["EdgeDefinition", "MemberDefinition", "define_reactor"]

EdgeDefinition = tuple[str, str, str] | tuple[str, str, str, "Mapping[str, Any] | None"]
"""Source, target, kind, and a config."""
_COLUMNS: Final = ("model_id", "endpoint", "role", "weight", "priority", "is_enabled")
_Edges = dict[tuple[str, str, str], dict[str, Any]]


def define_reactor(
    session: Session,
    name: str,
    strategy: str,
    *,
    members: Mapping[str, MemberDefinition],
    edges: Sequence[EdgeDefinition] = (),
    config: Mapping[str, Any] | None = None,
    status: str = "active",
) -> Reactor:
    """Make a reactor, or make the one of that name what is said here.

    Said again it changes nothing, so that the cell of a notebook can run again. The number of statements does not
    depend on how many members and edges there are. Operations keep what they ran with. What was changed otherwise, such
    as weights that were fitted, becomes again what is said, or the default.

    Parameters
    ----------
    strategy
        One of `strategies`.
    members
        What each is, by name. Their order is their priority, from 0 on, where none is said. Members that are not
        named are disabled, and stay with all they answered; named again they are enabled.
    edges
        Source, target, kind, and perhaps a config, as `link_members` takes them. Others are taken away.
    config
        As `ReactorConfig`; its ``options`` are those of the strategy.

    Raises
    ------
    FusionError
        Something makes no sense: a name, a key, a value, an edge, a cycle of ``feeds_into``. Nothing is changed then.
    ModelNotFound
        There is no such model. Nothing is changed then, either.

    Examples
    --------
    >>> define_reactor(  # doctest: +SKIP
    ...     session,
    ...     "answers",
    ...     "cascade",
    ...     members={"small": {"model": "demo@1"}, "large": {"endpoint": "large"}},
    ... )
    """
    check_name("a reactor", name)
    said = {"strategy": strategy, "config": check_reactor(strategy, config, status), "status": status}
    wanted = _checked_members(members)
    drawn = _checked_edges(wanted, edges)
    with session.begin_nested():
        row = _made(session, name, said)
        ids = _define_members(session, row, wanted)
        _define_edges(session, row, ids, drawn)
    session.expire(row, ["graph_version", "interactions", "members"])
    return row


def _checked_members(members: Mapping[str, MemberDefinition]) -> dict[str, dict[str, Any]]:
    """All that is said of each member, and what is not."""
    wanted = {}
    for number, (name, given) in enumerate(members.items()):
        check_name("a member", name)
        check_keys(f"the member {name!r}", given, MemberDefinition.__annotations__)
        defaults: dict[str, Any] = {
            "model": None,
            "endpoint": None,
            "role": "primary",
            "weight": 1.0,
            "priority": number,
        }
        said = defaults | dict(given)
        check_member(name, said)
        config = checked_config(f"the config of {name!r}", given.get("config"))
        wanted[name] = said | {"weight": float(said["weight"]), "config": config, "is_enabled": True}
    return wanted


def _checked_edges(members: Iterable[str], edges: Sequence[EdgeDefinition]) -> _Edges:
    """Configs by edges, which lead from member to member and not round."""
    known = list(members)
    drawn: _Edges = {}
    feeders: TopologicalSorter[str] = TopologicalSorter()
    for each in edges:
        if isinstance(each, str) or len(each) not in (3, 4):
            raise FusionError(f"an edge is (source, target, kind) or (source, target, kind, config), not {each!r:.80}")
        source, target, kind = each[:3]
        check_edge(source, target, kind)
        for end in (source, target):
            if end not in known:
                there = f"there are {listed(known)}" if known else "there are none"
                raise FusionError(f"the edge {source} {kind} {target} needs a member {end!r:.80}; {there}")
        if (source, target, kind) in drawn:
            raise FusionError(f"the edge {source} {kind} {target} is there twice")
        config = each[3] if len(each) == 4 else None  # noqa: PLR2004
        drawn[source, target, kind] = checked_config(f"the config of {source} {kind} {target}", config)
        if kind == "feeds_into":
            feeders.add(target, source)
    try:
        feeders.prepare()
    except CycleError as error:
        way = " feeds into ".join(error.args[1])
        raise FusionError(f"{way}: nobody would answer first; draw one of these edges of another kind") from None
    return drawn


def _made(session: Session, name: str, said: dict[str, Any]) -> Reactor:
    """The reactor of that name, locked against whoever defines it at the same time; its operations need not wait."""
    own = select(Reactor).where(Reactor.tenant_id == TENANT_ID, Reactor.name == name)
    own = own.with_for_update(key_share=True).execution_options(populate_existing=True)
    row = session.scalars(own).one_or_none()
    if row is None:
        session.execute(insert(Reactor).values(name=name, **said).on_conflict_do_nothing())
        row = session.scalars(own).one()
    row.strategy, row.status = said["strategy"], said["status"]
    if not is_same(row.config, said["config"]):
        row.config = said["config"]
        flag_modified(row, "config")  # the ORM takes true for 1
    session.flush()
    return row


def _define_members(session: Session, reactor: Reactor, wanted: dict[str, dict[str, Any]]) -> dict[str, uuid.UUID]:
    """Ids of members by name, all of them as they are wanted."""
    models = _model_ids(session, wanted)
    of_reactor = select(ReactorModel).where(ReactorModel.reactor_id == reactor.id)
    stored = {row.name: row for row in session.scalars(of_reactor.execution_options(populate_existing=True))}
    values = []
    for name, said in wanted.items():
        fields = {each: said[each] for each in (*_COLUMNS[1:], "config")} | {"model_id": models.get(name)}
        if name not in stored or not _is_so(stored[name], fields):
            values.append({"reactor_id": reactor.id, "name": name} | fields)
    ids = {name: row.id for name, row in stored.items()}
    if values:
        upsert = insert(ReactorModel).values(values)
        upsert = upsert.on_conflict_do_update(
            index_elements=["reactor_id", "name"],
            set_={each: upsert.excluded[each] for each in (*_COLUMNS, "config")},
        )
        written = session.scalars(upsert.returning(ReactorModel), execution_options={"populate_existing": True})
        ids |= {row.name: row.id for row in written}
    if left := [row for row in stored.values() if row.name not in wanted and row.is_enabled]:
        session.execute(
            update(ReactorModel).where(ReactorModel.id.in_([row.id for row in left])), {"is_enabled": False}
        )
        for row in left:
            session.expire(row)
    return ids


def _is_so(row: ReactorModel, fields: dict[str, Any]) -> bool:
    return all(getattr(row, each) == fields[each] for each in _COLUMNS) and is_same(row.config, fields["config"])


def _model_ids(session: Session, wanted: dict[str, dict[str, Any]]) -> dict[str, uuid.UUID]:
    """Ids of models by the names of members."""
    named = {name: said["model"] for name, said in wanted.items() if said["model"] is not None}
    references = {name: model.id if isinstance(model, Model) else model for name, model in named.items()}
    found = find_model_ids(session, references.values()) if references else {}
    return {name: found[reference] for name, reference in references.items()}


def _define_edges(session: Session, reactor: Reactor, ids: dict[str, uuid.UUID], drawn: _Edges) -> None:
    of_reactor = select(ModelInteraction).where(ModelInteraction.reactor_id == reactor.id)
    rows = session.scalars(of_reactor.execution_options(populate_existing=True)).all()
    wanted = {(ids[source], ids[target], kind): config for (source, target, kind), config in drawn.items()}
    stored = {(row.source_id, row.target_id, row.interaction_type): row for row in rows}
    # First, since those to be drawn may lead the other way.
    if gone := [row.id for edge, row in stored.items() if edge not in wanted]:
        session.execute(delete(ModelInteraction).where(ModelInteraction.id.in_(gone)))
    values = [
        {"reactor_id": reactor.id, "source_id": edge[0], "target_id": edge[1], "interaction_type": edge[2]}
        | {"config": config}
        for edge, config in wanted.items()
        if edge not in stored or not is_same(stored[edge].config, config)
    ]
    if values:
        upsert = insert(ModelInteraction).values(values)
        upsert = upsert.on_conflict_do_update(
            constraint="uq_model_interaction_graph_edge", set_={"config": upsert.excluded.config}
        )
        session.execute(upsert.returning(ModelInteraction), execution_options={"populate_existing": True}).all()

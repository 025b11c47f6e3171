"""Reactors are made as they are meant, and what is refused is said in a sentence."""

import math
import uuid

import pytest
from sqlalchemy import func, select

from arc_halo.errors import FusionError, ModelNotFound, ReactorNotFound
from arc_halo.fusion.creating import (
    add_member,
    change_member,
    create_reactor,
    find_member,
    find_reactor,
    link_members,
    set_status,
    unlink_members,
)
from arc_halo.fusion.plan import load_plan
from arc_halo.schema import Reactor, ReactorModel
from arc_halo.schema.columns import TENANT_ID
from tests.schema.rows import add_model


def test_a_reactor_with_members_and_edges_can_be_run_by(session):
    model = add_model(session, "m", version="3")
    reactor = create_reactor(session, "r", "parallel", config={"min_answers": 2})
    add_member(session, reactor, "a", model="m@3", weight=2)
    add_member(session, "r", "b", endpoint="remote", role="validator", priority=1, config={"price": 3})
    link_members(session, reactor.id, "a", "b", "feeds_into", config={"what": "answer"})
    assert reactor.graph_version == 1
    assert [member.name for member in reactor.members] == ["a", "b"]
    plan = load_plan(session, "r")
    assert (plan.status, plan.config.min_answers) == ("active", 2)
    assert [(each.model_id, each.endpoint, each.role, each.weight) for each in plan.members] == [
        (model.id, None, "primary", 2.0),
        (None, "remote", "validator", 1.0),
    ]
    assert (plan.edges[0].kind, plan.edges[0].config) == ("feeds_into", {"what": "answer"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "magic"}, "no strategy is called 'magic'; there are .*parallel"),
        ({"config": {"options": {"nothing": 1}}}, "nothing"),
        ({"config": {"budge": 1}}, "budge"),
        ({"status": "on"}, "no status is called 'on'; there are draft, active"),
        ({"name": " "}, "printable"),
        ({"name": "r"}, "called 'r' already"),
    ],
)
def test_a_reactor_that_makes_no_sense_is_refused(session, values, message):
    create_reactor(session, "r", "parallel")
    with pytest.raises(FusionError, match=message):
        create_reactor(session, **{"name": "new", "strategy": "parallel"} | values)
    assert session.scalar(select(func.count()).select_from(Reactor)) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"endpoint": None}, "needs a model"),
        ({"role": "boss"}, "no role is called 'boss'; there are primary"),
        ({"weight": math.nan}, "finite"),
        ({"weight": -1}, "0 or more"),
        ({"priority": -1}, "smaller goes first"),
        ({"name": "a"}, "has a member 'a' already"),
        ({"name": "a\nb"}, "printable"),
    ],
)
def test_a_member_that_makes_no_sense_is_refused(session, values, message):
    reactor = create_reactor(session, "r", "parallel")
    add_member(session, reactor, "a", endpoint="x")
    with pytest.raises(FusionError, match=message):
        add_member(session, reactor, **{"name": "b", "endpoint": "x"} | values)
    assert session.scalar(select(func.count()).select_from(ReactorModel)) == 1


def test_what_is_not_there_is_told(session):
    with pytest.raises(ReactorNotFound, match="there is none yet"):
        find_reactor(session, "r")
    reactor = create_reactor(session, "r", "parallel")
    with pytest.raises(ReactorNotFound, match="there are r"):
        find_reactor(session, uuid.uuid4())
    with pytest.raises(ReactorNotFound):
        find_reactor(session, "\x00")
    with pytest.raises(FusionError, match="it has none"):
        find_member(session, reactor, "a")
    with pytest.raises(ModelNotFound):
        add_member(session, reactor, "a", model="nobody@1")
    add_member(session, reactor, "a", endpoint="x")
    with pytest.raises(FusionError, match="no member 'b'; it has a"):
        link_members(session, reactor, "a", "b", "augments")


def test_edges_that_make_no_sense_are_refused(session):
    reactor = create_reactor(session, "r", "parallel")
    for name in "abc":
        add_member(session, reactor, name, endpoint="x")
    link_members(session, reactor, "a", "b", "feeds_into")
    link_members(session, reactor, "b", "c", "feeds_into")
    with pytest.raises(FusionError, match="c cannot feed into a: a feeds into c already"):
        link_members(session, reactor, "c", "a", "feeds_into")
    with pytest.raises(FusionError, match="a feeds_into b already"):
        link_members(session, reactor, "a", "b", "feeds_into")
    with pytest.raises(FusionError, match="to itself"):
        link_members(session, reactor, "a", "a", "validates")
    with pytest.raises(FusionError, match="no kind is called 'likes'"):
        link_members(session, reactor, "a", "b", "likes")
    link_members(session, reactor, "c", "a", "validates")
    assert reactor.graph_version == 3


def test_members_are_disabled_and_reactors_paused(session):
    reactor = create_reactor(session, "r", "parallel")
    add_member(session, reactor, "a", endpoint="x")
    change_member(session, "r", "a", enabled=False)
    set_status(session, "r", "paused")
    plan = load_plan(session, "r")
    assert (plan.members, plan.status) == ((), "paused")
    change_member(session, "r", "a", enabled=True)
    assert [each.name for each in load_plan(session, "r").members] == ["a"]
    with pytest.raises(FusionError, match="no status"):
        set_status(session, "r", "gone")


def test_a_reactor_of_another_tenant_is_not_there(session):
    row = Reactor(name="theirs", strategy="parallel", tenant_id=TENANT_ID + 1)
    session.add(row)
    session.flush()
    for reference in ("theirs", row.id):
        with pytest.raises(ReactorNotFound):
            find_reactor(session, reference)


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": 0},
        {"role": "judge"},
        {"priority": 3},
        {"model": "m@2"},
        {"model": "m", "endpoint": None},
        {"model": None},
        {"endpoint": "y"},
        {"config": {"price": True}},
        {"config": None},
    ],
    ids=str,
)
def test_a_member_becomes_what_is_said_and_stays_what_is_not(session, changes):
    for version in "12":
        add_model(session, "m", version=version)
    start = {"model": "m@1", "endpoint": "x", "role": "secondary", "weight": 2, "priority": 1, "config": {"price": 1}}
    for name in ("r", "new"):
        create_reactor(session, name, "parallel")
    add_member(session, "r", "a", **start)
    add_member(session, "new", "a", **start | changes)
    change_member(session, "r", "a", **changes)
    session.expire_all()
    columns = ("model_id", "endpoint", "role", "weight", "priority", "config", "is_enabled")
    was, becomes = ([getattr(find_member(session, each, "a"), name) for name in columns] for each in ("r", "new"))
    assert repr(was) == repr(becomes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoint": None}, "needs a model"),
        ({"role": "boss"}, "no role is called 'boss'"),
        ({"weight": -1}, "0 or more"),
        ({"enabled": 1}, "True or False"),
        ({"wait": 2}, "the member 'a' has no 'wait'; there are model, .*, enabled"),
        ({"model": "far", "weight": 3}, "no model 'far'"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(session, changes, message):
    create_reactor(session, "r", "parallel")
    member = add_member(session, "r", "a", endpoint="x")
    with pytest.raises((FusionError, ModelNotFound), match=message):
        change_member(session, "r", "a", **changes)
    assert (member.endpoint, member.role, member.weight, member.is_enabled) == ("x", "primary", 1.0, True)


def test_a_change_of_priority_changes_the_order(session):
    reactor = create_reactor(session, "r", "parallel")
    for name in "ab":
        add_member(session, reactor, name, endpoint="x")
    assert [member.name for member in reactor.members] == ["a", "b"]
    change_member(session, reactor, "a", priority=2)
    assert [member.name for member in reactor.members] == ["b", "a"]


def test_an_edge_is_taken_away(session):
    reactor = create_reactor(session, "r", "parallel")
    for name in "ab":
        add_member(session, reactor, name, endpoint="x")
    link_members(session, reactor, "a", "b", "feeds_into")
    with pytest.raises(FusionError, match="r has no edge a validates b; it has a feeds_into b"):
        unlink_members(session, "r", "a", "b", "validates")
    unlink_members(session, "r", "a", "b", "feeds_into")
    assert (reactor.graph_version, reactor.interactions, load_plan(session, "r").edges) == (2, [], ())
    with pytest.raises(FusionError, match=r"r has no edge a feeds_into b$"):
        unlink_members(session, "r", "a", "b", "feeds_into")
    link_members(session, reactor, "b", "a", "feeds_into")


def test_of_many_names_the_rest_is_counted(session):
    for number in range(12):
        create_reactor(session, f"r{number:02}", "parallel")
    with pytest.raises(ReactorNotFound, match=r"there are r00, .*, r09 and 2 more$"):
        find_reactor(session, "far")

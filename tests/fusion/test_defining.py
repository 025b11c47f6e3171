"""A reactor is what was said of it last, whatever it was before."""

from __future__ import annotations

import re
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from arc_halo.errors import FusionError, ModelNotFound
from arc_halo.fusion.creating import find_member
from arc_halo.fusion.defining import define_reactor
from arc_halo.fusion.plan import load_plan
from arc_halo.fusion.reactor import Reactor as RunningReactor
from arc_halo.schema import FusionOperation, ModelAlias, Reactor, ReactorModel
from tests.schema.rows import add, add_model

MEMBERS = {"a": {"endpoint": "x"}, "b": {"endpoint": "y", "role": "validator", "weight": 2, "config": {"price": 3}}}


def rows(session, name="r"):
    """What a plan has, without ids and counters; and who is disabled."""
    session.flush()
    plan = load_plan(session, name)
    names = {each.id: each.name for each in plan.members}
    members = {
        each.name: (each.model, each.endpoint, each.role, each.weight, each.priority, each.config)
        for each in plan.members
    }
    edges = sorted((names[each.source_id], names[each.target_id], each.kind, str(each.config)) for each in plan.edges)
    return plan.strategy, plan.status, plan.stored_config, list(members.items()), edges


def disabled(session, name="r"):
    of = select(ReactorModel.name).join(ReactorModel.reactor).where(Reactor.name == name, ~ReactorModel.is_enabled)
    return set(session.scalars(of))


def test_a_reactor_is_made_with_members_in_their_order_and_edges(session):
    add_model(session, "m", version="3")
    members = {"z": {"model": "m@3", "endpoint": "remote"}, **MEMBERS, "first": {"endpoint": "x", "priority": 0}}
    edges = [("z", "a", "feeds_into", {"label": "Known"}), ("b", "a", "validates")]
    reactor = define_reactor(
        session, "r", "hierarchical", members=members, edges=edges, config={"min_answers": 2}, status="draft"
    )
    assert reactor.graph_version == 2
    assert rows(session) == (
        "hierarchical",
        "draft",
        {"min_answers": 2},
        [
            ("first", (None, "x", "primary", 1.0, 0, {})),
            ("z", ("m@3", "remote", "primary", 1.0, 0, {})),
            ("a", (None, "x", "primary", 1.0, 1, {})),
            ("b", (None, "y", "validator", 2.0, 2, {"price": 3})),
        ],
        [("b", "a", "validates", "{}"), ("z", "a", "feeds_into", "{'label': 'Known'}")],
    )


@pytest.mark.parametrize(
    "change",
    [
        {"strategy": "parallel"},
        {"status": "paused"},
        {"config": {"min_answers": True}},
        {"config": {"min_answers": 1, "budget": {"tokens": 3}}},
        {"members": {**MEMBERS, "a": {"endpoint": "z"}}},
        {"members": {**MEMBERS, "a": {"endpoint": "x", "role": "judge"}}},
        {"members": {**MEMBERS, "a": {"endpoint": "x", "weight": 0}}},
        {"members": {**MEMBERS, "a": {"endpoint": "x", "priority": 7}}},
        {"members": {**MEMBERS, "a": {"endpoint": "x", "config": {"price": 1}}}},
        {"members": {**MEMBERS, "a": {"model": "m@1"}}},
        {"members": {**MEMBERS, "c": {"endpoint": "x"}}},
        {"members": dict(reversed(MEMBERS.items()))},
        {"edges": []},
        {"edges": [("b", "a", "feeds_into")]},
        {"edges": [("a", "b", "feeds_into", {"label": "A"})]},
    ],
    ids=str,
)
def test_every_kind_of_change_is_made(session, change):
    add_model(session, "m", version="1")
    base = {"strategy": "hierarchical", "members": MEMBERS, "edges": [("a", "b", "feeds_into")]}
    reactor = define_reactor(session, "r", **base, config={"min_answers": 1})
    old = rows(session)
    again = define_reactor(session, "r", **{"config": {"min_answers": 1}} | base | change)
    assert again is reactor
    define_reactor(session, "new", **{"config": {"min_answers": 1}} | base | change)
    assert repr(rows(session)) == repr(rows(session, "new")) != repr(old)


def test_the_same_again_only_reads(session, count_statements):
    edges = [("a", "b", "feeds_into", {"label": "x"})]
    reactor = define_reactor(session, "r", "hierarchical", members=MEMBERS, edges=edges, config={"min_answers": 1.0})
    version, changed = reactor.graph_version, reactor.updated_at
    with count_statements(session.get_bind().engine) as statements:
        define_reactor(session, "r", "hierarchical", members=MEMBERS, edges=edges, config={"min_answers": 1})
    assert [each.split()[0] for each in statements] == ["SAVEPOINT", "SELECT", "SELECT", "SELECT", "RELEASE"]
    session.refresh(reactor)
    assert (reactor.graph_version, reactor.updated_at) == (version, changed)


def test_the_number_of_statements_does_not_grow(session, count_statements):
    add_model(session, "m", version="1")
    counts = []
    for number in (2, 30):
        for shift in (0, 1):  # made; then all changed, some gone, and new ones
            names = [f"m{each + shift}" for each in range(number)]
            members = {
                each: {"model": "m@1" if place % 2 else "m", "weight": shift + place, "config": {"at": place}}
                for place, each in enumerate(names)
            }
            edges = [(one, other, "feeds_into", {"label": str(shift)}) for one, other in zip(names, names[1:])]  # noqa: B905, RUF007
            with count_statements(session.get_bind().engine) as statements:
                define_reactor(session, f"r{number}", "hierarchical", members=members, edges=edges)
            counts.append(len(statements))
    assert counts[:2] == counts[2:]
    assert max(counts) < 12


def test_who_is_not_named_is_disabled_and_comes_back(session):
    reactor = define_reactor(session, "r", "parallel", members=MEMBERS)
    (a, b) = reactor.members
    define_reactor(session, "r", "parallel", members={"b": MEMBERS["b"]})
    assert (disabled(session), a.is_enabled, b.is_enabled, b.priority) == ({"a"}, False, True, 0)
    define_reactor(session, "r", "parallel", members=MEMBERS)
    assert (disabled(session), a.is_enabled, b.priority) == (set(), True, 1)
    assert [each.id for each in reactor.members] == [a.id, b.id]
    define_reactor(session, "r", "parallel", members={})
    assert disabled(session) == {"a", "b"}


def test_edges_are_turned_round(session):
    members = {name: {"endpoint": "x"} for name in "abc"}
    ways = [("a", "b", "feeds_into"), ("b", "c", "feeds_into")]
    reactor = define_reactor(session, "r", "hierarchical", members=members, edges=ways)
    define_reactor(session, "r", "hierarchical", members=members, edges=[(b, a, kind) for a, b, kind in ways])
    assert rows(session)[4] == [("b", "a", "feeds_into", "{}"), ("c", "b", "feeds_into", "{}")]
    assert (reactor.graph_version, len(reactor.interactions)) == (6, 2)


def test_a_name_or_alias_is_the_version_that_it_is_when_it_is_said(session):
    first = add_model(session, "m", version="1")
    add(session, ModelAlias(name="m", alias="best", model_id=first.id))
    members = {
        "newest": {"model": "m"},
        "best": {"model": "m@best"},
        "row": {"model": first},
        "id": {"model": first.id},
    }
    define_reactor(session, "r", "parallel", members=members)
    add_model(session, "m", version="2")
    assert {each[1][0] for each in rows(session)[3]} == {"m@1"}
    newest = find_member(session, "r", "newest")
    assert newest.model is first
    define_reactor(session, "r", "parallel", members=members)
    assert newest.model.version == "2"
    assert [each[1][0] for each in rows(session)[3]] == ["m@2", "m@1", "m@1", "m@1"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "magic"}, "no strategy is called 'magic'"),
        ({"config": {"budge": 1}}, "budge"),
        ({"config": {"question": {"system": "\0"}}}, "character 0"),
        ({"config": {"question": {"system": object()}}}, "as JSON has them"),
        ({"status": "on"}, "no status is called 'on'"),
        ({"members": {"a": {"endpont": "x"}}}, "the member 'a' has no 'endpont'; there are model, endpoint, role"),
        ({"members": {"a": {}}}, "needs a model"),
        ({"members": {"a": {"endpoint": 3}}}, "the endpoint of 'a' is a name"),
        ({"members": {"a": {"endpoint": "x", "weight": float("nan")}}}, "the weight of 'a' is finite"),
        ({"members": {"a": {"endpoint": "x", "weight": "much"}}}, "the weight of 'a' is finite"),
        ({"members": {"a": {"endpoint": "x", "priority": 0.5}}}, "smaller goes first"),
        ({"members": {"a": {"endpoint": "x", "role": "boss"}}}, "no role is called 'boss'"),
        ({"members": {" ": {"endpoint": "x"}}}, "printable"),
        ({"edges": [("a", "b", "likes")]}, "no kind is called 'likes'"),
        ({"edges": [("a", "a", "augments")]}, "to itself"),
        ({"edges": [("a", "c", "augments")]}, "a augments c needs a member 'c'; there are a, b"),
        ({"edges": [("a", "b", "augments")] * 2}, "is there twice"),
        ({"edges": [("a", "b")]}, r"an edge is \(source, target, kind\)"),
        (
            {"edges": [("a", "b", "feeds_into"), ("b", "a", "feeds_into")]},
            "feeds into [ab] feeds into [ab]: nobody would answer first",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(session, values, message):
    define_reactor(session, "r", "hierarchical", members={"a": {"endpoint": "old"}})
    old = rows(session)
    with pytest.raises(FusionError, match=message):
        define_reactor(session, "r", **{"strategy": "parallel", "members": MEMBERS} | values)
    assert rows(session) == old


def test_a_model_that_is_not_there_leaves_the_session_usable(session):
    define_reactor(session, "r", "hierarchical", members=MEMBERS)
    old = rows(session)
    with pytest.raises(ModelNotFound, match="no model 'nobody@1'"):
        define_reactor(session, "r", "parallel", members={"a": {"model": "nobody@1"}})
    assert rows(session) == old


def test_names_that_are_cut_are_counted(session):
    members = {f"m{each:02}": {"endpoint": "x"} for each in range(13)}
    with pytest.raises(FusionError, match=re.escape("there are m00, m01,") + ".*, m09 and 3 more$"):
        define_reactor(session, "r", "parallel", members=members, edges=[("m00", "m99", "augments")])


def test_operations_keep_what_they_ran_with(database):
    def define(members, **changes):
        with database.session() as session:
            define_reactor(session, "r", **{"strategy": "ensemble", "members": members} | changes)
            session.commit()

    define({"a": {"endpoint": "a", "weight": 2}, "b": {"endpoint": "b"}})
    members = {"a": lambda _: "yes", "b": lambda _: "no"}
    first = RunningReactor(database, "r", members).run("Is it?", seed=1)
    define({"b": {"endpoint": "b", "role": "secondary", "weight": 5}}, strategy="parallel", config={"min_answers": 1})
    with database.session() as session:
        operation = session.get_one(FusionOperation, first.operation_id)
        assert (operation.strategy, operation.config) == ("ensemble", {})
        kept = [(each.member.name, each.role, each.weight, each.answer["text"]) for each in operation.members]
    assert sorted(kept) == [("a", "primary", 2.0, "yes"), ("b", "primary", 1.0, "no")]
    assert RunningReactor(database, "r", members).run("Is it?", seed=1).text == "no"


def test_two_who_define_it_at_once_both_succeed(database):
    barrier, failed = threading.Barrier(4), []

    def define(number):
        try:
            barrier.wait()
            database.transaction(
                lambda session: define_reactor(session, "r", "parallel", members=MEMBERS, status="active").id
            )
        except Exception as error:  # noqa: BLE001
            failed.append((number, error))

    threads = [threading.Thread(target=define, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failed == []
    with database.session() as session:
        assert [each[0] for each in rows(session)[3]] == ["a", "b"]


CONFIGS = st.none() | st.dictionaries(
    st.sampled_from(["label", "x"]), st.sampled_from([True, 1, 0, 1.5, 1e20, None, "é", [1, True], {"y": 1}])
)
DEFINITIONS = st.dictionaries(
    st.sampled_from("abcd"),
    st.fixed_dictionaries(
        {"endpoint": st.sampled_from("xy")},
        optional={
            "model": st.sampled_from([None, "m", "m@1", "m@2"]),
            "role": st.sampled_from(["primary", "judge", "router"]),
            "weight": st.sampled_from([0, 0.1, 1, 3]),
            "priority": st.integers(0, 3),
            "config": CONFIGS,
        },
    ),
)
KINDS = st.sampled_from(["feeds_into", "validates", "augments"])


@st.composite
def definitions(draw):
    members = draw(DEFINITIONS)
    order = draw(st.permutations(list(members)))  # edges along it close no cycle
    pairs = [(one, other) for place, one in enumerate(order) for other in order[place + 1 :]]
    kept = draw(st.lists(st.tuples(st.sampled_from(pairs), KINDS), unique=True)) if pairs else []
    return {
        "strategy": draw(st.sampled_from(["parallel", "hierarchical"])),
        "status": draw(st.sampled_from(["draft", "active", "retired"])),
        "config": draw(st.sampled_from([None, {}, {"min_answers": 1}, {"member_seconds": 1}])),
        "members": members,
        "edges": [(*pair, kind, draw(CONFIGS)) for pair, kind in kept],
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(definitions(), min_size=2, max_size=3))
def test_whatever_it_was_it_is_what_was_said_last(session, count_statements, said):
    with session.begin_nested() as everything:
        for version in "12":
            add_model(session, "m", version=version)
        for each in said:
            define_reactor(session, "r", **each)
        define_reactor(session, "new", **said[-1])
        assert repr(rows(session)) == repr(rows(session, "new"))
        seen = {name for each in said for name in each["members"]}
        assert disabled(session) == seen - set(said[-1]["members"])
        with count_statements(session.get_bind().engine) as statements:
            define_reactor(session, "r", **said[-1])
        assert not any(re.match("INSERT|UPDATE|DELETE", each) for each in statements)
        everything.rollback()
    session.expunge_all()

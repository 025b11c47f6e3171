"""Versions of a state: appended one after another, branched, rewound and compared."""

import math
import threading
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, func, select

from arc_halo.errors import FusionError, ReactorNotFound, StateConflict
from arc_halo.fusion.creating import add_member, create_reactor
from arc_halo.fusion.goals import Goal
from arc_halo.fusion.state import append_state, branch, history, read_state, rewind
from arc_halo.schema import CognitiveState

with_database = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text("ab/~é", max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab/~", max_size=2), inner, max_size=3),
    max_leaves=5,
)
contents = st.dictionaries(st.text("abc/~", max_size=2), values, max_size=3)


@pytest.fixture
def reactor(session):
    return create_reactor(session, "r", "parallel")


def test_versions_continue_each_other(session, reactor):
    with pytest.raises(FusionError, match="no state yet: append_state with parent=None"):
        read_state(session, "r")
    assert history(session, "r") == []
    first = append_state(session, "r", parent=None, context={"topic": "sea"}, goals=["answer"])
    assert (first.version, first.parent_version, first.goals) == (0, None, (Goal("answer"),))
    second = append_state(session, reactor, parent=0, memory={"seen": [1, 2.5, None]})
    assert (second.context, second.memory, second.goals) == ({"topic": "sea"}, {"seen": [1, 2.5, None]}, first.goals)
    assert read_state(session, reactor.id) == second
    assert read_state(session, "r", 0) == first
    assert history(session, "r") == [second, first]
    with pytest.raises(FusionError, match="no version 7 of its state; they go from 0 to 1"):
        read_state(session, "r", 7)
    with pytest.raises(FusionError, match="no version 99999999999"):
        history(session, "r", 99999999999)
    with pytest.raises(ReactorNotFound):
        read_state(session, "nobody")


@pytest.mark.usefixtures("reactor")
def test_only_the_newest_is_continued(session):
    append_state(session, "r", parent=None)
    append_state(session, "r", parent=0)
    with pytest.raises(StateConflict, match="version 1 came after 0"):
        append_state(session, "r", parent=0)
    with pytest.raises(StateConflict, match="has a state already"):
        append_state(session, "r", parent=None)
    with pytest.raises(FusionError, match="no version 5"):
        append_state(session, "r", parent=5)
    branched = append_state(session, "r", parent=0, branch=True, context={"way": "other"})
    assert (branched.version, branched.parent_version) == (2, 0)
    assert [state.version for state in history(session, "r")] == [2, 0]
    assert [state.version for state in history(session, "r", 1)] == [1, 0]
    assert branch(session, "r", 1, memory={"a": 1}).parent_version == 1
    assert session.scalar(select(func.count()).select_from(CognitiveState)) == 4


@pytest.mark.usefixtures("reactor")
def test_rewinding_appends_what_was(session):
    append_state(session, "r", parent=None, context={"n": 0}, goals=[{"name": "g", "progress": 0.5}])
    append_state(session, "r", parent=0, context={"n": 1}, goals=[])
    back = rewind(session, "r", 0)
    assert (back.version, back.parent_version, back.context, back.goals[0].progress) == (2, 1, {"n": 0}, 0.5)
    with pytest.raises(FusionError, match="no version 9"):
        rewind(session, "r", 9)


def store_first(database):
    with database.session() as session, session.begin():
        create_reactor(session, "r", "parallel")
        append_state(session, "r", parent=None)


@pytest.mark.parametrize(("commits", "expected"), [(True, [StateConflict]), (False, [1])])
@pytest.mark.parametrize("kind", ["append", "rewind"])
def test_of_two_sessions_that_continue_one_version_one_gets_through(database, kind, commits, expected):
    store_first(database)
    outcomes = []
    ready = threading.Event()

    def second():
        with database.session() as session, session.begin():
            read_state(session, "r")
            ready.set()
            try:
                made = append_state(session, "r", parent=0) if kind == "append" else rewind(session, "r", 0)
                outcomes.append(made.version)
            except StateConflict as error:
                outcomes.append(type(error))
            session.scalar(select(1))  # the session goes on

    with database.session() as first:
        append_state(first, "r", parent=0, context={"first": True})
        other = threading.Thread(target=second)
        other.start()
        assert ready.wait(10)
        other.join(0.3)
        assert other.is_alive()  # it waits for the first
        (first.commit if commits else first.rollback)()
        other.join(10)
    assert outcomes == expected


def test_two_branches_at_once_both_get_through(database):
    store_first(database)
    made = []

    def second():
        with database.session() as session, session.begin():
            made.append(branch(session, "r", 0).version)

    with database.session() as first:
        assert branch(first, "r", 0).version == 1
        other = threading.Thread(target=second)
        other.start()
        other.join(0.3)
        first.commit()
        other.join(10)
    assert made == [2]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"goals": [{"name": "g", "status": "lost"}]}, "open, done or dropped"),
        ({"goals": [{"name": "g", "progress": math.nan}]}, "from 0 to 1"),
        ({"goals": [{"name": "g", "progress": True}]}, "from 0 to 1"),
        ({"goals": [{"name": "g", "status": "done", "progress": 0.5}]}, "so its progress is 1"),
        ({"goals": ["g", Goal("g")]}, "g is there twice"),
        ({"goals": [{"title": "g"}]}, "a goal has a name"),
        ({"goals": [" "]}, "a goal has a name"),
        ({"attention_focus": {"a": -1}}, "0 or more"),
        ({"attention_focus": {"a": math.inf}}, "finite"),
        ({"attention_focus": {"a": 0}}, "not all 0"),
        ({"attention_focus": {"b": 1}}, "has no member"),
        ({"attention_focus": {str(uuid.uuid4()): 1}}, "sees no memory"),
        ({"context": {"a": math.nan}}, "finite"),
        ({"context": {"a": {1}}}, "values of JSON"),
        ({"memory": {"a": "\0"}}, "character 0"),
        ({"memory": {"a": "\ud800"}}, "values of JSON"),
    ],
)
def test_parts_that_make_no_sense_are_refused(session, reactor, parts, message):
    add_member(session, reactor, "a", endpoint="x")
    with pytest.raises(FusionError, match=message):
        append_state(session, "r", parent=None, **parts)
    assert session.scalar(select(func.count()).select_from(CognitiveState)) == 0


@pytest.mark.usefixtures("reactor")
def test_what_is_done_has_all_progress(session):
    state = append_state(session, "r", parent=None, goals=[{"name": "g", "status": "done"}])
    assert state.goals == (Goal("g", "done", 1.0),)


@with_database
@given(weights=st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e308), min_size=1))
def test_attention_adds_up_to_one(database, weights):
    with database.session() as session:
        reactor = create_reactor(session, "r", "parallel")
        for name in "abc":
            add_member(session, reactor, name, endpoint="x")
        if not any(weights.values()):
            with pytest.raises(FusionError):
                append_state(session, "r", parent=None, attention_focus=weights)
            return
        focus = append_state(session, "r", parent=None, attention_focus=weights).attention_focus
    assert sum(focus.values()) == pytest.approx(1)
    assert max(focus, key=focus.get) in [key for key, value in weights.items() if value == max(weights.values())]


@with_database
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["append", "stale", "branch", "rewind"]), st.integers(0, 9), contents), max_size=8
    )
)
def test_versions_are_as_a_list_that_only_grows(database, steps):
    """Against a model: contents and parents by version."""
    with database.session() as session:
        create_reactor(session, "r", "parallel")
        assert append_state(session, "r", parent=None).version == 0
        model = [({}, None)]
        for action, number, content in steps:
            newest, old = len(model) - 1, number % len(model)
            if action == "append":
                append_state(session, "r", parent=newest, context=content)
                model.append((content, newest))
            elif action == "branch":
                branch(session, "r", old, context=content)
                model.append((content, old))
            elif action == "rewind":
                rewind(session, "r", old)
                model.append((model[old][0], newest))
            elif old != newest:
                with pytest.raises(StateConflict):
                    append_state(session, "r", parent=old, context=content)
        for version, (content, parent) in enumerate(model):
            state = read_state(session, "r", version)
            assert (state.context, state.parent_version) == (content, parent)
        line, at = [], len(model) - 1
        while at is not None:
            line.append(at)
            at = model[at][1]
        assert [state.version for state in history(session, "r")] == line


def test_a_long_line_is_one_statement(session, reactor):
    append_state(session, "r", parent=None)
    for parent in range(20):
        append_state(session, "r", parent=parent)
    statements = []
    event.listen(session.connection(), "before_cursor_execute", lambda *given: statements.append(given[2]))
    assert len(history(session, reactor)) == 21
    assert len(statements) == 1

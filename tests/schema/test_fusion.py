"""Reactors: members, the interaction graph, operations and state."""

import math
import threading
from itertools import pairwise

import numpy as np
import pytest
from sqlalchemy import func, select, text, update

from arc_halo.errors import ConstraintViolation, TransactionConflict
from arc_halo.schema import (
    CognitiveMemory,
    CognitiveState,
    FusionOperation,
    FusionOperationMember,
    ModelInteraction,
    Reactor,
    ReactorMetric,
    ReactorModel,
)
from tests.schema.rows import add, add_model, add_reactor

CYCLE = "ck_model_interaction_graph_acyclic"
OPERATION = {"status": "completed", "strategy": "parallel", "input": {}, "output": {}, "execution_seconds": 1}
CALL = {"position": 0, "role": "primary", "weight": 1, "status": "answered", "answer": {}}


def link(session, source, target, interaction_type="feeds_into"):
    edge = {"reactor_id": source.reactor_id, "source_id": source.id, "target_id": target.id}
    return add(session, ModelInteraction(**edge, interaction_type=interaction_type))


@pytest.mark.parametrize("length", [2, 3, 5])
def test_a_cycle_is_refused(session, length):
    _reactor, members = add_reactor(session, *"abcde"[:length])
    for source, target in pairwise(members):
        link(session, source, target)
    with pytest.raises(ConstraintViolation) as caught:
        link(session, members[-1], members[0])
    assert caught.value.constraint == CYCLE


def test_turning_an_edge_round_into_a_cycle_is_refused(session):
    _reactor, (a, b, c) = add_reactor(session, *"abc")
    link(session, a, b)
    link(session, b, c)
    edge = link(session, a, c)
    edge.source_id, edge.target_id = c.id, a.id
    with pytest.raises(ConstraintViolation):
        session.flush()


def test_a_cycle_within_one_statement_is_refused(session):
    reactor, (a, b) = add_reactor(session, *"ab")
    edges = text(
        "INSERT INTO arc_halo.model_interaction_graph (reactor_id, source_id, target_id, interaction_type)"
        " VALUES (:reactor, :a, :b, 'feeds_into'), (:reactor, :b, :a, 'feeds_into')"
    )
    with pytest.raises(ConstraintViolation):
        session.execute(edges, {"reactor": reactor.id, "a": a.id, "b": b.id})


def test_only_feeds_into_must_be_acyclic(session):
    _reactor, (a, b, c) = add_reactor(session, *"abc")
    link(session, a, b)
    link(session, b, a, "validates")
    link(session, a, c)
    link(session, b, c)  # a diamond is no cycle
    assert session.scalar(select(func.count()).select_from(ModelInteraction)) == 4


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_two_halves_of_a_cycle_cannot_commit_at_once(database, isolation):
    with database.session() as session, session.begin():
        _reactor, (a, b) = add_reactor(session, *"ab")
    outcomes = []

    def second():
        with database.session() as session:
            session.connection(execution_options={"isolation_level": isolation})
            session.scalar(select(func.count()).select_from(ModelInteraction))  # fixes the snapshot, if there is one
            ready.set()
            try:
                link(session, b, a)
            except (ConstraintViolation, TransactionConflict) as error:
                outcomes.append(error)

    ready = threading.Event()
    with database.session() as first:
        first.connection(execution_options={"isolation_level": isolation})
        link(first, a, b)
        other = threading.Thread(target=second)
        other.start()
        assert ready.wait(10)
        other.join(0.2)
        assert other.is_alive()  # it waits for the reactor's row
        first.commit()
    other.join(10)
    assert [type(error) for error in outcomes] == [
        ConstraintViolation if isolation == "READ COMMITTED" else TransactionConflict
    ]


def test_each_change_of_the_graph_counts(session):
    reactor, (a, b) = add_reactor(session, *"ab")
    edge = link(session, a, b, "augments")
    edge.interaction_type = "validates"
    session.flush()
    session.delete(edge)
    session.flush()
    session.refresh(reactor)
    assert reactor.graph_version == 3


def test_members_of_different_reactors_cannot_be_linked(session):
    _reactor, (a,) = add_reactor(session, "a")
    _other, (b,) = add_reactor(session, "b", name="other")
    with pytest.raises(ConstraintViolation):
        link(session, a, b)


@pytest.mark.parametrize(
    "columns",
    [
        {"weight": -1},
        {"weight": math.nan},
        {"weight": math.inf},
        {"role": "boss"},
        {"priority": -1},
        {"endpoint": None},
    ],
)
def test_members_keep_to_the_rules(session, columns):
    reactor, _members = add_reactor(session)
    with pytest.raises(ConstraintViolation):
        add(session, ReactorModel(**{"reactor": reactor, "name": "a", "endpoint": "x", **columns}))


def test_a_model_that_is_a_member_cannot_be_deleted(session):
    reactor, _members = add_reactor(session)
    model = add_model(session)
    add(session, ReactorModel(reactor=reactor, name="a", model=model))
    session.delete(model)
    with pytest.raises(ConstraintViolation):
        session.flush()


@pytest.fixture
def used(session):
    """A reactor with an edge, two versions of state, a memory, an operation and a metric."""
    reactor, (a, b) = add_reactor(session, *"ab")
    link(session, a, b)
    add(session, CognitiveState(reactor=reactor, version=0))
    state = add(session, CognitiveState(reactor=reactor, version=1, parent_version=0, goals=["answer"]))
    vector = np.array([1, 2, 3], np.float32)
    add(session, CognitiveMemory(state=state, content="something", dimension=3, vector=vector))
    operation = add(
        session,
        FusionOperation(
            reactor=reactor,
            status="completed",
            strategy="ensemble",
            input={"text": "?"},
            output={"text": "!"},
            state_version=1,
            execution_seconds=0.1,
        ),
    )
    add(session, FusionOperationMember(operation=operation, member=a, **CALL))
    add(session, ReactorMetric(reactor=reactor, operation=operation, quality=0.5))
    return reactor


def test_a_reactor_takes_all_that_is_its_own_with_it(session, used):
    session.expire_all()
    assert used.members
    assert used.states
    session.delete(used)
    session.flush()
    session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
    for mapped in (ReactorModel, ModelInteraction, CognitiveState, CognitiveMemory, FusionOperation, ReactorMetric):
        assert session.scalar(select(func.count()).select_from(mapped)) == 0


def test_a_member_that_answered_cannot_be_deleted(session, used):
    session.delete(used.members[0])
    session.flush()
    with pytest.raises(ConstraintViolation):
        session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))


@pytest.mark.usefixtures("used")
def test_a_version_of_state_cannot_be_changed(session):
    with pytest.raises(ConstraintViolation) as caught:
        session.execute(update(CognitiveState).values(context={"other": True}))
    assert caught.value.constraint == "ck_cognitive_state_append_only"


@pytest.mark.usefixtures("used")
def test_a_version_of_state_cannot_be_deleted_by_itself(session):
    session.execute(update(FusionOperation).values(state_version=None))
    with pytest.raises(ConstraintViolation):
        session.execute(text("DELETE FROM arc_halo.cognitive_state WHERE version = 1"))


def test_of_two_writers_who_continue_one_version_one_is_refused(session, used):
    add(session, CognitiveState(reactor_id=used.id, version=2, parent_version=1))
    with pytest.raises(ConstraintViolation) as caught:
        add(session, CognitiveState(reactor_id=used.id, version=2, parent_version=1))
    assert caught.value.constraint == "uq_cognitive_state_reactor_id_version"


def test_state_may_branch_but_not_loop(session, used):
    add(session, CognitiveState(reactor_id=used.id, version=2, parent_version=0))
    with pytest.raises(ConstraintViolation):
        add(session, CognitiveState(reactor_id=used.id, version=3, parent_version=3))


def test_memories_are_recalled_by_likeness(session, used):
    like = CognitiveMemory.vector.cosine_distance(np.array([2, 4, 6], np.float32))
    memory = session.scalars(select(CognitiveMemory).where(CognitiveMemory.reactor_id == used.id).order_by(like)).one()
    assert memory.content == "something"
    assert memory.vector.dtype == np.float32
    assert memory.state.version == 1


def test_strategies_are_names_of_any_kind(session):
    add(session, Reactor(name="a", strategy="my_own_2"))
    with pytest.raises(ConstraintViolation):
        add(session, Reactor(name="b", strategy="import os"))


@pytest.mark.parametrize(
    ("operation", "call", "constraint"),
    [
        ({"quality": math.nan}, {}, "ck_fusion_operations_quality_finite"),
        ({"quality": -math.inf}, {}, "ck_fusion_operations_quality_finite"),
        ({"output": None}, {}, "ck_fusion_operations_completed_has_output"),
        ({}, {"quality": math.nan}, "ck_fusion_operation_members_quality_finite"),
        ({}, {"quality": math.inf}, "ck_fusion_operation_members_quality_finite"),
        ({}, {"answer": None}, "ck_fusion_operation_members_answered_has_answer"),
        ({}, {"propensity": 0}, "ck_fusion_operation_members_propensity_is_probability"),
    ],
)
def test_operations_keep_to_the_rules(session, operation, call, constraint):
    reactor, (member,) = add_reactor(session, "a")
    row = FusionOperation(reactor=reactor, **OPERATION | operation)
    session.add_all([row, FusionOperationMember(operation=row, member=member, **CALL | call)])
    with pytest.raises(ConstraintViolation) as caught:
        session.flush()
    assert caught.value.constraint == constraint


def test_an_operation_is_no_replay_of_itself(session):
    reactor, _members = add_reactor(session, "a")
    row = add(session, FusionOperation(reactor=reactor, **OPERATION))
    row.replay_of = row.id
    with pytest.raises(ConstraintViolation) as caught:
        session.flush()
    assert caught.value.constraint == "ck_fusion_operations_no_replay_of_itself"

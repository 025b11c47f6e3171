"""What a reactor remembers comes back by likeness, importance and age; and not across branches."""

import datetime as dt
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from arc_halo.errors import FusionError, ReactorNotFound
from arc_halo.fusion.creating import create_reactor
from arc_halo.fusion.memory import recall, remember
from arc_halo.fusion.state import append_state, branch, rewind

HOUR = dt.timedelta(hours=1)
X, Y = np.array([1, 0], np.float32), np.array([0, 1], np.float32)


@pytest.fixture
def reactor(session):
    row = create_reactor(session, "r", "parallel")
    append_state(session, row, parent=None)
    return row


def contents(found):
    return [each.content for each in found]


def age(session, memory, hours):
    memory.created_at -= hours * HOUR
    session.flush()


def test_the_likest_come_first_within_one_reactor(session, reactor):
    other = create_reactor(session, "other", "parallel")
    append_state(session, other, parent=None)
    remember(session, other, "of another", X)
    for content, vector in (("x", X), ("y", Y), ("between", X + Y), ("against", -X), ("long", np.ones(3))):
        remember(session, "r", content, vector)
    statements = []
    event.listen(session.connection(), "before_cursor_execute", lambda *given: statements.append(given[2]))
    found = recall(session, reactor, 7 * X)
    assert len(statements) == 1
    assert contents(found)[:2] == ["x", "between"]
    assert sorted(contents(found)[2:]) == ["against", "y"]
    assert [each.score for each in found] == pytest.approx([1, math.sqrt(0.5), 0, 0])
    assert contents(recall(session, "r", X, k=1)) == ["x"]


@pytest.mark.usefixtures("reactor")
def test_importance_and_age_count(session):
    age(session, remember(session, "r", "old", X, 3.0), hours=2)
    remember(session, "r", "new", X)
    assert contents(recall(session, "r", X)) == ["old", "new"]
    found = recall(session, "r", X, half_life=HOUR)
    assert contents(found) == ["new", "old"]
    assert [each.score for each in found] == pytest.approx([1, 0.75], rel=1e-3)
    assert found[1].age_seconds == pytest.approx(7200, abs=60)


@pytest.mark.usefixtures("reactor")
def test_branches_do_not_see_each_other(session):
    remember(session, "r", "root", X)
    append_state(session, "r", parent=0)
    remember(session, "r", "main", X)
    branch(session, "r", 0)
    remember(session, "r", "branch", X)
    append_state(session, "r", parent=1, branch=True)
    seen = [sorted(contents(recall(session, "r", X, at_version=version))) for version in range(4)]
    assert seen == [["root"], ["main", "root"], ["branch", "root"], ["main", "root"]]
    assert contents(recall(session, "r", X, at_version=9)) == []
    rewind(session, "r", 0)
    assert sorted(contents(recall(session, "r", X))) == ["main", "root"]


@pytest.mark.usefixtures("reactor")
def test_attention_may_be_on_memories_that_are_seen(session):
    memory = remember(session, "r", "root", X)
    append_state(session, "r", parent=0, attention_focus={str(memory.id): 2})
    hidden = remember(session, "r", "later", X)
    with pytest.raises(FusionError, match="sees no memory"):
        branch(session, "r", 0, attention_focus={str(hidden.id): 1})


@pytest.mark.usefixtures("reactor")
def test_ages_and_importances_of_any_size_are_ordered(session):
    age(session, remember(session, "r", "ancient", X, 1e300), hours=10**6)
    age(session, remember(session, "r", "old", X, 1e-300), hours=10**4)
    remember(session, "r", "nothing", X, 0)
    found = recall(session, "r", X, half_life=dt.timedelta(seconds=1))
    assert contents(found)[:2] == ["old", "ancient"]
    assert [each.score for each in found] == [0, 0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: remember(s, "r", "a", np.zeros(2)), "direction"),
        (lambda s: remember(s, "r", "a", np.array([math.nan])), "finite"),
        (lambda s: remember(s, "r", "a", np.ones((1, 2))), r"not \[1, 2\]"),
        (lambda s: remember(s, "r", "a", X, -1), "importance"),
        (lambda s: remember(s, "r", "a", X, math.inf), "importance"),
        (lambda s: remember(s, "r", "\0", X), "character"),
        (lambda s: remember(s, "r", "\ud800", X), "character"),
        (lambda s: remember(s, "r", "a", X, state_version=3), "no version 3"),
        (lambda s: recall(s, "r", X, 0), "at least one"),
        (lambda s: recall(s, "r", X, half_life=dt.timedelta(0)), "above 0"),
        (lambda s: recall(s, "nobody", X), "no reactor"),
    ],
)
@pytest.mark.usefixtures("reactor")
def test_what_makes_no_sense_is_refused(session, call, message):
    with pytest.raises((FusionError, ReactorNotFound), match=message):
        call(session)


vectors = st.tuples(*[st.integers(-3, 3)] * 3).filter(any)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(
    memories=st.lists(st.tuples(vectors, st.floats(0.01, 9), st.integers(0, 100)), min_size=1, max_size=6),
    asked=vectors,
    half_life=st.none() | st.integers(1, 50),
)
def test_scores_are_those_of_the_formula(database, memories, asked, half_life):
    with database.session() as session:
        create_reactor(session, "r", "parallel")
        append_state(session, "r", parent=None)
        for number, (vector, importance, hours) in enumerate(memories):
            age(session, remember(session, "r", str(number), np.array(vector), importance), hours)
        found = recall(session, "r", np.array(asked), 9, half_life=half_life and half_life * HOUR)
    assert len(found) == len(memories)
    for each in found:
        vector, importance, hours = memories[int(each.content)]
        cosine = np.dot(vector, asked) / (np.linalg.norm(vector) * np.linalg.norm(asked))
        expected = max(0, cosine) * importance * (0.5 ** (hours / half_life) if half_life else 1)
        assert each.score == pytest.approx(expected, rel=1e-3, abs=1e-6)
    scores = [each.score for each in found]
    assert all(first >= second * (1 - 1e-9) for first, second in pairwise(scores))


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_a_vector_without_a_likeness_is_not_remembered(session, reactor, value):
    with pytest.raises(FusionError, match="direction"):
        remember(session, reactor, "tiny", np.full(2, value))

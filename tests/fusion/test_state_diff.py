"""What is different in two versions."""

import datetime as dt
import json
import uuid

from hypothesis import given
from hypothesis import strategies as st

from arc_halo.fusion.goals import Goal
from arc_halo.fusion.state import State
from arc_halo.fusion.state_diff import diff_states

leaves = (
    st.none() | st.booleans() | st.integers(0, 2) | st.text("ab", max_size=2) | st.lists(st.integers(0, 2), max_size=2)
)
trees = st.recursive(leaves, lambda inner: st.dictionaries(st.text("a/~", max_size=2), inner, max_size=3), max_leaves=6)
contents = st.dictionaries(st.text("ab/~", max_size=2), trees, max_size=3)


def state(version=0, **parts):
    by_default = {"context": {}, "memory": {}, "attention_focus": {}, "goals": ()}
    return State(
        uuid.UUID(int=1), version, None, **by_default | parts, created_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    )


def test_each_part_is_compared():
    before = state(
        context={"user": {"name": "Ada", "age": 36}, "gone": 1},
        memory={"x/y": [1]},
        attention_focus={"a": 0.25, "b": 0.75},
        goals=(Goal("find", progress=0.5), Goal("drop")),
    )
    after = state(
        1,
        context={"user": {"name": "Ada", "age": 37}, "new": {}},
        memory={"x/y": [1, 2]},
        attention_focus={"b": 1.0},
        goals=(Goal("find", "done", 1.0), Goal("tell")),
    )
    diff = diff_states(before, after)
    assert diff.context.changed == {"/user/age": (36, 37)}
    assert (diff.context.added, diff.context.removed) == ({"/new": {}}, {"/gone": 1})
    assert diff.memory.changed == {"/x~1y": ([1], [1, 2])}
    assert diff.attention_focus.removed == {"a": 0.25}
    assert (list(diff.goals.added), list(diff.goals.removed), list(diff.goals.changed)) == (
        ["tell"],
        ["drop"],
        ["find"],
    )
    assert diff.summary.splitlines() == [
        "From version 0 to version 1:",
        "The context has /new now: {}.",
        "The context has no /gone any more; it was 1.",
        "In the context, /user/age went from 36 to 37.",
        "In the memory, /x~1y went from [1] to [1, 2].",
        "The attention focus has no a any more; it was 0.25.",
        "In the attention focus, b went from 0.75 to 1.",
        'There is a new goal "tell", open, with a progress of 0.',
        'The goal "drop" is there no more; it was open.',
        'The goal "find" is done now; its progress went from 0.5 to 1.',
    ]
    assert json.loads(json.dumps(diff.to_json()))["parts"]["context"]["changed"] == {
        "/user/age": {"before": 36, "after": 37}
    }


def test_true_is_not_one():
    assert diff_states(state(context={"a": [True]}), state(context={"a": [1]})).context.changed
    assert diff_states(state(context={"a": {"b": [{}]}}), state(context={"a": {"b": [{}]}})).is_empty


@given(contents)
def test_a_state_does_not_differ_from_itself(content):
    diff = diff_states(state(context=content), state(3, context=json.loads(json.dumps(content))))
    assert diff.is_empty
    assert diff.summary == "Versions 0 and 3 have the same content."


@given(contents, contents)
def test_a_difference_leads_from_one_to_the_other_and_back(before, after):
    diff = diff_states(state(context=before), state(context=after)).context
    back = diff_states(state(context=after), state(context=before)).context
    assert (diff.added, diff.removed) == (back.removed, back.added)
    assert diff.changed == {place: (now, was) for place, (was, now) in back.changed.items()}
    leaves = places(before)
    for place in diff.removed:
        del leaves[place]
    leaves.update(diff.added)
    leaves.update({place: now for place, (_, now) in diff.changed.items()})
    assert json.dumps(leaves, sort_keys=True) == json.dumps(places(after), sort_keys=True)


def places(value, path=""):
    """JSON pointers of all that is no object, and of empty objects."""
    found = {}
    for key, each in value.items():
        place = f"{path}/" + key.replace("~", "~0").replace("/", "~1")
        found |= places(each, place) if isinstance(each, dict) and each else {place: each}
    return found

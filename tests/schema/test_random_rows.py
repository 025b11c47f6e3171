"""Triggers and views against models of a few lines, on random rows."""

import math
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from arc_halo.errors import ConstraintViolation
from arc_halo.schema import ModelInteraction, TrainingMetric, TrainingProgress
from tests.schema.rows import add_attempt, add_model, add_reactor, add_run, add_segment, add_series

# Each example takes its rows back; the session may therefore serve all of them.
few = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MEMBERS = "abcde"


@few
@given(edges=st.lists(st.tuples(st.sampled_from(MEMBERS), st.sampled_from(MEMBERS)), unique=True, max_size=12))
def test_an_edge_is_refused_exactly_if_it_closes_a_cycle(session, edges):
    with session.begin_nested() as example:
        reactor, members = add_reactor(session, *MEMBERS)
        ids = {member.name: member.id for member in members}
        kept = {name: set() for name in MEMBERS}
        for source, target in edges:
            kept[target].add(source)
            if source == target or has_cycle(kept):
                kept[target].discard(source)
                assert not links(session, reactor, ids[source], ids[target])
            else:
                assert links(session, reactor, ids[source], ids[target])
        example.rollback()


def has_cycle(sources):
    try:
        TopologicalSorter(sources).prepare()
    except CycleError:
        return True
    return False


def links(session, reactor, source, target):
    edge = {"reactor_id": reactor.id, "source_id": source, "target_id": target, "interaction_type": "feeds_into"}
    try:
        with session.begin_nested():
            session.execute(insert(ModelInteraction).values(edge))
    except ConstraintViolation:
        return False
    return True


@dataclass
class Attempt:
    parent: int | None
    fork_step: int
    points: dict[int, float]
    sealed: int  # so many of its points, the oldest, stand in a segment


@st.composite
def attempts(draw):
    drawn = []
    for number in range(draw(st.integers(1, 4))):
        parent = draw(st.none() | st.integers(0, number - 1)) if number else None
        values = st.integers(-3, 3).map(float) | st.just(math.nan)
        points = dict(sorted(draw(st.dictionaries(st.integers(0, 12), values, max_size=8)).items()))
        drawn.append(Attempt(parent, draw(st.integers(0, 12)), points, draw(st.integers(0, len(points)))))
    return drawn


def stitched(drawn):
    """The line of the last attempt: of each parent the points up to the fork, after that the child's own."""

    def line(number):
        attempt = drawn[number]
        if attempt.parent is None:
            return attempt.points
        before = {step: value for step, value in line(attempt.parent).items() if step <= attempt.fork_step}
        return before | {step: value for step, value in attempt.points.items() if step > attempt.fork_step}

    return line(len(drawn) - 1)


@few
@given(drawn=attempts(), goal=st.sampled_from(["minimize", "maximize"]))
def test_training_progress_sums_up_the_stitched_line(session, drawn, goal):
    with session.begin_nested() as example:
        run = add_run(session, add_model(session))
        for number, attempt in enumerate(drawn):
            fork = {} if attempt.parent is None else {"parent_number": attempt.parent, "fork_step": attempt.fork_step}
            series = add_series(session, add_attempt(session, run, number, **fork), goal=goal)
            store(session, series, attempt)
        found = session.get(TrainingProgress, run.id).metrics
        assert found == summary(stitched(drawn), goal)
        example.rollback()


def store(session, series, attempt):
    points = list(attempt.points.items())
    if attempt.sealed:
        add_segment(session, series, dict(points[: attempt.sealed]))
    for step, value in points[attempt.sealed :]:
        session.execute(insert(TrainingMetric).values(series_id=series.id, step=step, value=value))


def summary(points, goal):
    if not points:
        return {}
    last = points[max(points)]
    known = {step: value if goal == "minimize" else -value for step, value in points.items() if not math.isnan(value)}
    best = min(known, key=lambda step: (known[step], step), default=None)
    return {
        "train/loss": {
            "goal": goal,
            "last": "NaN" if math.isnan(last) else last,
            "last_step": max(points),
            "best": points.get(best),
            "best_step": best,
        }
    }

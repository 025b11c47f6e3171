"""Figures over many operations."""

import datetime as dt

import pytest
from sqlalchemy import event, func, select

from arc_halo.errors import FusionError, ReactorNotFound
from arc_halo.fusion.creating import create_reactor
from arc_halo.fusion.metrics.window import measure_window
from arc_halo.fusion.operations.calls import Input
from arc_halo.fusion.replay import replay
from arc_halo.schema import FusionOperation, ReactorMetric
from tests.fusion.reactors import make_reactor

near = pytest.approx
RIGHT = {"a": "1100", "b": "1010", "c": "1001"}


def run(database, **options):
    """Four questions: each member is right at the first, and at one more of its own."""
    members = {name: lambda p, bits=bits: "yes" if bits[int(p)] == "1" else "no" for name, bits in RIGHT.items()}
    reactor = make_reactor(database, members, **options)
    return reactor, [reactor.run(Input(str(number), reference="yes")) for number in range(4)]


def test_a_window_is_measured_and_stored(database):
    reactor, outcomes = run(database)
    replay(reactor, outcomes[0].operation_id)  # counts for nothing
    with database.session() as session, session.begin():
        window = measure_window(session, "reactor")
        stored = session.scalars(select(ReactorMetric).where(ReactorMetric.operation_id.is_(None))).one()
        assert (stored.operation_count, stored.quality, stored.gain) == (4, 0.25, -0.25)
        assert stored.operations_per_second == window.operations_per_second > 0
    figures = window.figures
    # The majority is right once; each member is right twice, and one of them always.
    assert (figures.quality, figures.gain, figures.oracle_gap) == (0.25, -0.25, 0.75)
    assert (window.operation_count, window.completed_count, window.measured_count) == (4, 4, 4)
    assert (window.best_quality, window.best_count) == (0.5, 4)
    assert window.disagreement == near(0.5)
    assert window.q == near(0)  # (1 * 1 - 1 * 1) of each pair
    assert figures.coherence == near(sum(each.figures.coherence for each in outcomes) / 4)


def test_gain_is_counted_where_the_best_member_answered(database):
    def last(_):
        raise RuntimeError

    reactor = make_reactor(database, {"a": "yes", "b": last, "c": "no"}, members={"a": {"weight": 3}})
    for _ in range(3):
        reactor.run(Input("?", reference="yes"))
    with database.session() as session:
        window = measure_window(session, "reactor", store=False)
        assert (window.best_member, window.figures.gain, window.figures.oracle_gap) == ("a", 0, 0)
        assert session.scalar(select(func.count()).where(ReactorMetric.operation_id.is_(None))) == 0


def test_scores_are_held_against_quality(database):
    _reactor, outcomes = run(database)
    with database.session() as session, session.begin():
        for outcome, score in zip(outcomes, (0.9, 0.9, 0.1, None), strict=True):
            session.get_one(FusionOperation, outcome.operation_id).score = score
        session.flush()
        figures = measure_window(session, "reactor").figures
    assert figures.calibration_error == near((abs(1 - 1.8) + 0.1) / 3)
    assert figures.brier_score == near((0.01 + 0.81 + 0.01) / 3)


def test_a_window_has_ends(database):
    run(database)
    now = dt.datetime.now(dt.UTC)
    hour = dt.timedelta(hours=1)
    with database.session() as session:
        statements = []
        event.listen(session.connection(), "before_cursor_execute", lambda *given: statements.append(given[2]))
        window = measure_window(session, "reactor", since=now - hour, until=now + hour, store=False)
        assert (window.operation_count, window.window_seconds) == (4, 7200)
        assert len(statements) == 3  # the reactor, its operations, their answers
        assert measure_window(session, "reactor", since=now + hour).operation_count == 0
        with pytest.raises(FusionError, match="time zone"):
            measure_window(session, "reactor", since=dt.datetime(2026, 1, 1))  # noqa: DTZ001
        with pytest.raises(FusionError, match="does not end"):
            measure_window(session, "reactor", since=now, until=now - hour)


def test_without_operations_nothing_is_stored(session):
    create_reactor(session, "r", "parallel")
    assert measure_window(session, "r").figures.is_empty
    assert session.scalar(select(func.count()).select_from(ReactorMetric)) == 0
    with pytest.raises(ReactorNotFound):
        measure_window(session, "nobody")

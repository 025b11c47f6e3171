"""Operations are found again, by themselves and by the models in them."""

import datetime as dt
import math
import uuid

import pytest
from sqlalchemy import event, select, update

from arc_halo.errors import FusionError, ModelNotFound, OperationNotFound
from arc_halo.fusion.operations.history import (
    find_operation,
    operations_of,
    operations_with_model,
    set_quality,
    status_of,
)
from arc_halo.schema import ReactorMetric, ReactorModel
from tests.fusion.reactors import make_reactor
from tests.schema.rows import add_model, digest


def broken(_):
    raise RuntimeError


def test_the_newest_operations_come_first(database):
    reactor = make_reactor(database, {"a": lambda prompt: broken(prompt) if prompt == "2" else prompt})
    ids = [outcome.operation_id for outcome in (reactor.run(str(number), check=False) for number in range(4))]
    with database.session() as session:
        assert [row.id for row in operations_of(session, "reactor", limit=3)] == ids[:0:-1]
        assert [row.id for row in operations_of(session, "reactor", status="failed")] == [ids[2]]
        later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
        assert not operations_of(session, "reactor", since=later)
        with pytest.raises(FusionError, match="no operation is 'lost'"):
            operations_of(session, "reactor", status="lost")
        assert find_operation(session, ids[0]).members[0].member.name == "a"
        assert find_operation(session, str(ids[0]).upper()).reactor.name == "reactor"
        with pytest.raises(OperationNotFound, match="several ids begin"):
            find_operation(session, str(ids[0])[:4])
        for nobody in (uuid.uuid4(), "abcd1234", "%", ""):
            with pytest.raises(OperationNotFound, match="no operation"):
                find_operation(session, nobody)


def test_answers_of_a_withdrawn_version_are_found(database):
    reactor = make_reactor(database, {"a": "yes", "b": "yes", "c": broken})
    with database.session() as session, session.begin():
        versions = {each: add_model(session, "m", version=each, weights_digest=digest(each)) for each in "34"}
        for name, version in (("a", "3"), ("b", "4"), ("c", "3")):
            of_name = update(ReactorModel).where(ReactorModel.name == name)
            session.execute(of_name.values(model_id=versions[version].id, role="secondary"))
    first = reactor.run("?")
    with database.session() as session, session.begin():
        session.execute(update(ReactorModel).values(model_id=versions["4"].id))
    reactor.run("?")
    with database.session() as session:
        statements = []
        event.listen(session.connection(), "before_cursor_execute", lambda *given: statements.append(given[2]))
        (use,) = operations_with_model(session, "m@3")
        assert len(statements) == 2  # the model, and what it answered
        assert (use.operation_id, use.reactor, use.member, use.role) == (
            first.operation_id,
            "reactor",
            "a",
            "secondary",
        )
        assert (use.input["prompt"], use.output["text"], use.answer["text"]) == ("?", "yes", "yes")
        assert operations_with_model(session, digest("3")) == [use]
        assert [each.member for each in operations_with_model(session, "m@4")] == ["a", "b", "b"]
        assert not operations_with_model(session, digest("nobody"))
        with pytest.raises(ModelNotFound):
            operations_with_model(session, "m@5")
        with pytest.raises(FusionError, match="32 bytes"):
            operations_with_model(session, b"short")


def test_quality_is_told_later(database):
    reactor = make_reactor(database, {"a": "yes", "b": "no", "c": "yes"}, members={"b": {"weight": 1.5}})
    first, second = (reactor.run("?").operation_id for _ in range(2))
    with database.session() as session, session.begin():
        row = set_quality(session, first, 0.5, {"a": 0.4, "b": 0.9, "c": 0.5})
        assert [call.quality for call in row.members] == [0.4, 0.9, 0.5]
    with database.session() as session, session.begin():
        set_quality(session, second, 0.25)
        metrics = session.scalars(select(ReactorMetric).order_by(ReactorMetric.operation_id)).all()
        # The greatest weight was b's; of the second nobody's quality is known.
        assert [(row.quality, row.gain, row.oracle_gap) for row in metrics] == [
            (0.5, pytest.approx(-0.4), pytest.approx(0.4)),
            (0.25, None, None),
        ]
        assert metrics[0].coherence is not None
        with pytest.raises(FusionError, match="d gave no answer"):
            set_quality(session, first, 1, {"d": 1})
        with pytest.raises(FusionError, match="finite"):
            set_quality(session, first, math.nan)
        status = status_of(session, "reactor")
        assert (status.operation_count, status.error_rate, status.members_by_role) == (2, 0, {"primary": 3})
        assert status.gain is not None


def test_what_has_no_answer_has_no_quality(database):
    failed = make_reactor(database, {"a": broken}).run("?", check=False)
    with database.session() as session, pytest.raises(FusionError, match="no answer"):
        set_quality(session, failed.operation_id, 1)


def test_an_id_is_found_by_its_beginning_through_the_index(database):
    reactor = make_reactor(database, {"a": "yes"})
    ids = [str(reactor.run("?").operation_id) for _ in range(3)]
    with database.session() as session:
        statements = []
        event.listen(session.connection().engine, "before_cursor_execute", lambda *said: statements.append(said[2]))
        for each in (ids[1], ids[1].upper(), ids[1].replace("-", ""), ids[1][:35]):
            assert str(find_operation(session, each).id) == ids[1]
        assert not any("AS TEXT" in each or "AS VARCHAR" in each for each in statements)
        with pytest.raises(OperationNotFound, match="several"):
            find_operation(session, ids[1][:8])

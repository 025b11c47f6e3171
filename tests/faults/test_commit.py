"""A link that is cut around COMMIT: the work is done exactly once, and its caller knows."""

from __future__ import annotations

import random
import re
import threading
import time
import uuid

import numpy as np
import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from arc_halo import create_model
from arc_halo.database.engine import application_engine
from arc_halo.database.transaction import run_transaction
from arc_halo.errors import ModelExists
from arc_halo.schema import Model, Operation
from arc_halo.store import put as store_put
from tests.faults.cutting import cut_around_commit
from tests.fixtures.long import how_many

cuts = how_many("--cuts", short=16)


@pytest.fixture
def database_url(migrated_url):
    return migrated_url


@pytest.fixture
def cuttable(proxy, impatient):
    # Who waits for a transaction that nobody ends is an error, not a test that hangs.
    engine = application_engine(proxy.url, impatient.model_copy(update={"statement_timeout_seconds": 30}))
    yield engine
    engine.dispose()


@pytest.mark.long
@pytest.mark.parametrize("small_nbytes", [1 << 25, -1], ids=["one transaction", "uploaded"])
@pytest.mark.timeout(3600)
def test_each_model_is_there_once_however_often_the_link_is_cut(cuttable, proxy, cuts, monkeypatch, small_nbytes):
    check_exactly_once(cuttable, proxy, cuts, monkeypatch, small_nbytes)


@pytest.mark.parametrize("small_nbytes", [1 << 25, -1], ids=["one transaction", "uploaded"])
def test_a_model_is_there_once_when_the_link_is_cut(cuttable, proxy, cuts, monkeypatch, small_nbytes):
    check_exactly_once(cuttable, proxy, cuts, monkeypatch, small_nbytes)


def check_exactly_once(engine, proxy, cuts, monkeypatch, small_nbytes):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", small_nbytes)
    monkeypatch.setattr("arc_halo.database.unanswered.ABANDONED_SECONDS", 0.2)
    choose = random.Random(cuts)
    made = []
    for number in range(cuts):

        def unit(session, number=number):
            arrays = {"w": np.full((40, 40), number, np.float32)}
            model = create_model(session, "m", {}, arrays)
            session.flush()
            if len(made) == number:  # each unit is cut once, so that none runs out of attempts by bad luck
                made.append(cut_around_commit(proxy, choose))
            return model

        stored = run_transaction(lambda: Session(engine), unit)
        assert getattr(proxy, made[-1]) is None
        assert stored.version == str(number + 1)
        assert re.fullmatch("[0-9a-f]{64}", stored.weights_digest.hex())
    assert len(made) == cuts
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(Model)) == cuts
        assert session.scalar(select(func.count()).select_from(Operation)) == cuts


def create_once(session, op_id, name="m"):
    return create_model(session, name, {}, {"w": np.ones((3, 3), np.float32)}, op_id=op_id)


def test_a_script_that_was_killed_after_its_commit_may_be_run_again(database):
    op_id = uuid.uuid4()
    first = database.transaction(lambda session: create_once(session, op_id))
    again = database.transaction(lambda session: create_once(session, op_id))
    assert (again.id, again.version) == (first.id, first.version) == (op_id, "1")
    with pytest.raises(ModelExists, match="an id of its own"):
        database.transaction(lambda session: create_once(session, op_id, name="other"))


def test_a_script_that_is_run_twice_at_once_makes_one_model(database):
    op_id = uuid.uuid4()
    seen = []
    second = threading.Thread(target=lambda: seen.append(database.transaction(lambda s: create_once(s, op_id))))
    with database.session() as session:
        create_once(session, op_id)
        second.start()
        while not session.scalar(text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")):
            time.sleep(0.01)
        session.commit()
        second.join()
        assert [model.id for model in seen] == [op_id]
        assert session.scalar(select(func.count()).select_from(Model)) == 1

"""A link that is cut around COMMIT: the work is done exactly once, and its caller knows."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from arc_halo import create_model
from arc_halo.database.engine import application_engine
from arc_halo.database.transaction import run_transaction
from arc_halo.schema import Model, Operation
from arc_halo.store import put as store_put
from tests.fixtures.long import how_many

cuts = how_many("--cuts", short=16)


@pytest.fixture
def database_url(migrated_url):
    return migrated_url


@pytest.fixture
def cuttable(proxy, impatient):
    engine = application_engine(proxy.url, impatient)
    yield engine
    engine.dispose()


def cut_around_commit(proxy, choose):
    """Before COMMIT is passed on, after it without an answer, or some microseconds after."""
    kind = choose.choice(["cut_before", "cut_after", "cut_soon_after"])
    setattr(proxy, kind, (b"COMMIT", choose.uniform(0, 0.004)) if kind == "cut_soon_after" else b"COMMIT")


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
    choose = random.Random(cuts)
    for number in range(cuts):

        def unit(session, number=number):
            arrays = {"w": np.full((40, 40), number, np.float32)}
            model = create_model(session, "m", {}, arrays)
            session.flush()
            cut_around_commit(proxy, choose)
            return model

        stored = run_transaction(lambda: Session(engine), unit)
        assert stored.version == str(number + 1)
        assert re.fullmatch("[0-9a-f]{64}", stored.weights_digest.hex())
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(Model)) == cuts
        assert session.scalar(select(func.count()).select_from(Operation)) == cuts

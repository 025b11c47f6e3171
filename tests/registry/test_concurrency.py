from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sqlalchemy import select, text

from arc_halo.codecs.chunking import ChunkLayout
from arc_halo.codecs.digest import chunk_digest
from arc_halo.database import connect
from arc_halo.dtypes import of_array
from arc_halo.registry import check_model, delete_model, import_model
from arc_halo.schema import Chunk, Model
from arc_halo.store import prune
from arc_halo.store import put as store_put
from tests.fixtures.models import VOCABULARY, bert, write_folder
from tests.fixtures.processes import import_processes
from tests.fixtures.tensors import count, counts, weights

ALL_SMALL, ALL_BIG = str(2**30), "-1"
SHARED = [weights((700, 600), seed) for seed in range(6)]


def overlapping(number):
    """Tensors that all models have, in an order of its own, and one that only this model has."""
    order = np.random.default_rng(number).permutation(len(SHARED))
    return {
        **bert().arrays(),
        **{f"extra.{place}": SHARED[index] for place, index in enumerate(order)},
        "own": weights((300, 300), 100 + number),
    }


def distinct_chunks(models):
    return {
        chunk_digest(array.tobytes()[span.offset : span.stop])
        for arrays in models
        for array in arrays.values()
        for span in ChunkLayout.of(of_array(array), array.shape)
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [write_folder(bert(), root / f"m{number}", arrays=overlapping(number)) for number in range(8)]


@pytest.mark.parametrize("small_nbytes", [ALL_SMALL, ALL_BIG])
def test_eight_processes_import_overlapping_models_at_once(migrated_url, folders, small_nbytes):
    options = ("--small-nbytes", small_nbytes, "--pause", "start")
    with import_processes(migrated_url, *((folder, folder.name, *options) for folder in folders)) as processes:
        assert [each.wait_for_pause() for each in processes] == ["start"] * 8
        for each in processes:
            each.go_on()
        for each in processes:
            each.finish()
    with connect(migrated_url) as database, database.session() as session:
        assert count(session, "models") == 8
        assert set(session.scalars(select(Chunk.digest))) == distinct_chunks(map(overlapping, range(8)))
        assert count(session, "embeddings") == len(VOCABULARY) + 32 + 2
        assert not [fault for folder in folders for fault in check_model(session, folder.name)]


def test_an_open_import_does_not_hold_up_another(migrated_url, folders, monkeypatch):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", -1)
    monkeypatch.setattr("arc_halo.store.embeddings.SMALL_NBYTES", -1)
    options = ("--small-nbytes", ALL_BIG, "--pause", "commit")
    with (
        import_processes(migrated_url, (folders[0], "held", *options)) as (held,),
        connect(migrated_url) as database,
        ThreadPoolExecutor(1) as pool,
    ):
        assert held.wait_for_pause() == "commit"
        other = pool.submit(database.transaction, lambda session: import_model(session, folders[1], name="other").id)
        other.result(60)
        with database.session() as session:
            assert session.scalars(select(Model.name)).all() == ["other"]
            held.go_on()
            held.finish()
            assert not [fault for name in ("held", "other") for fault in check_model(session, name)]


@pytest.mark.parametrize("small_nbytes", [ALL_SMALL, ALL_BIG])
@pytest.mark.parametrize("pause", ["store", "embed", "commit"])
def test_a_killed_import_leaves_no_model_and_nothing_in_the_way(migrated_url, folders, small_nbytes, pause):
    options = ("--small-nbytes", small_nbytes, "--pause", pause)
    with import_processes(migrated_url, (folders[0], "m", *options)) as (killed,):
        assert killed.wait_for_pause() == pause
        killed.kill()
    with connect(migrated_url) as database:
        with database.session() as session:
            assert count(session, "models") == 0
            assert (count(session, "tensor_data") > 0) == (small_nbytes == ALL_BIG)
        database.transaction(lambda session: import_model(session, folders[0], name="m").id)
        with database.session() as session:
            assert list(check_model(session, "m@1")) == []
        database.transaction(lambda session: delete_model(session, "m"))
        database.transaction(lambda session: session.execute(text("DELETE FROM arc_halo.upload_leases")))
        prune(database.engine, grace=dt.timedelta(0))
        with database.session() as session:
            assert counts(session) == (0, 0, 0)
            assert count(session, "embeddings") == 0

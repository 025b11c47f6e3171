"""Writers with overlapping content, `prune` and `sweep` without a pause: nobody sees an error, nothing dangles."""

from __future__ import annotations

import datetime as dt
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from arc_halo.database import connect
from arc_halo.registry import create_model, delete_model
from arc_halo.store import prune
from arc_halo.store import put as store_put
from arc_halo.store import upload as store_upload
from arc_halo.store.blobs import open_store
from arc_halo.store.sweep import sweep
from arc_halo.store.verify import verify_database
from tests.fixtures.long import how_many
from tests.fixtures.tensors import weights
from tests.store.test_deltas import trained

seconds = how_many("--seconds", short=6)
WRITERS = 4
AT_ONCE = dt.timedelta(0)
DANGLING = text("""
SELECT (SELECT count(*) FROM arc_halo.tensor_chunks AS c WHERE NOT EXISTS (
            SELECT FROM arc_halo.tensor_data AS d WHERE d.tenant_id = c.tenant_id AND d.digest = c.digest))
     + (SELECT count(*) FROM arc_halo.model_weights AS w WHERE NOT EXISTS (
            SELECT FROM arc_halo.tensor_metadata AS t WHERE t.id = w.tensor_id))
""")
DEADLOCKS = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")


def pool():
    """Content that writers share: bases, and what was trained from them."""
    bases = [weights((400, 300), seed) for seed in range(4)]
    return bases + [trained(base, seed=seed + 10) for seed, base in enumerate(bases)]


def write(database, number, stop, contents):
    choose = random.Random(number)
    kept = []
    while not stop.is_set():
        arrays = {f"t{index}": choose.choice(contents) for index in range(choose.randint(1, 5))}
        database.transaction(
            lambda session, arrays=arrays: create_model(session, f"m{number}", {}, arrays, compression="dense").id
        )
        kept.append(arrays)
        if len(kept) > 3:
            database.transaction(lambda session: delete_model(session, f"m{number}"))
            kept.pop()
    return len(kept)


def work_against_each_other(database, seconds):
    stop = threading.Event()
    rounds = 0
    contents = pool()
    blobs = None if database.blob_url is None else open_store(database.blob_url)
    with ThreadPoolExecutor(WRITERS) as writers:
        writing = [writers.submit(write, database, number, stop, contents) for number in range(WRITERS)]
        until = time.monotonic() + seconds
        try:
            while time.monotonic() < until and not any(each.done() for each in writing):
                prune(database.engine, blobs=blobs, grace=AT_ONCE)
                if blobs is not None:
                    sweep(database.engine, blobs, grace=AT_ONCE)
                rounds += 1
        finally:
            stop.set()
        assert all(each.result() > 0 for each in writing)
    assert rounds > 1
    with database.session() as session:
        assert session.scalar(DANGLING) == 0
        assert session.scalar(DEADLOCKS) == 0
    assert verify_database(database).faults == []


@pytest.fixture(params=["in the database", "in objects"])
def tier(request, migrated_url, file_url):
    with connect(migrated_url, blob_url=file_url if request.param == "in objects" else None) as database:
        yield database


@pytest.fixture(params=[1 << 25, -1], ids=["one transaction", "uploaded"])
def sized(request, monkeypatch, tier):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", request.param)
    monkeypatch.setattr(store_upload, "BATCH_NBYTES", 1 << 18)
    return tier


def test_writers_and_prune(sized, seconds):
    work_against_each_other(sized, seconds)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_writers_and_prune_for_long(sized, seconds):
    work_against_each_other(sized, seconds)

"""Payloads on their way between tiers: beside others, interrupted, damaged."""

from __future__ import annotations

import datetime as dt
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from sqlalchemy import text

from arc_halo.database import connect
from arc_halo.errors import BlobStoreError, CorruptChunk, MissingChunk, TransactionConflict
from arc_halo.registry import delete_model, iter_tensors
from arc_halo.store import migrate, prune
from arc_halo.store.blobs import BlobStore, open_store
from arc_halo.store.migrate import BATCH_ROWS, migrate_payloads
from arc_halo.store.progress import Meter
from arc_halo.store.sweep import sweep
from arc_halo.testing.tiers import check, create, example_tensors, places

AT_ONCE = dt.timedelta(0)
QUIET = Meter(None, "migrate", 0)
DIGESTS = "SELECT digest FROM arc_halo.tensor_data WHERE stored_nbytes >= 4096 ORDER BY digest"


@pytest.fixture
def tier(migrated_url, file_url):
    """Everything in the database, and a store beside it."""
    with connect(migrated_url) as database:
        create(database, "m", example_tensors())
    with connect(migrated_url, blob_url=file_url) as database:
        yield database


@pytest.fixture
def blobs(file_url):
    return open_store(file_url)


def run_first(monkeypatch, name, action):
    """Let something happen just after a method of the store has done its work for the first time."""
    method, first = getattr(BlobStore, name), iter([True])

    def interrupted(self, *arguments):
        result = method(self, *arguments)
        if next(first, False):
            action()
        return result

    monkeypatch.setattr(BlobStore, name, interrupted)


def test_objects_under_way_are_no_orphans(tier, blobs, monkeypatch):
    swept = []
    run_first(monkeypatch, "put", lambda: swept.append(sweep(tier.engine, blobs, grace=AT_ONCE)))
    migrate_payloads(tier.engine, blobs, "blobs", QUIET)
    assert [each.orphans for each in swept] == [0]
    check(tier, "m", example_tensors())


def test_an_interrupted_migration_goes_on_with_the_rest(tier, blobs, monkeypatch):
    monkeypatch.setattr("arc_halo.store.migrate.BATCH_ROWS", 1)
    put, calls = BlobStore.put, []

    def fail_third(self, digest, payload, owner):
        calls.append(digest)
        if len(calls) == 3:
            raise BlobStoreError("unplugged")
        return put(self, digest, payload, owner)

    monkeypatch.setattr(BlobStore, "put", fail_third)
    with pytest.raises(BlobStoreError):
        migrate_payloads(tier.engine, blobs, "blobs", QUIET)
    in_database, in_store = places(tier)
    assert in_store == 2
    check(tier, "m", example_tensors())
    assert migrate_payloads(tier.engine, blobs, "blobs", QUIET).payloads == in_database
    check(tier, "m", example_tensors())


def test_what_goes_in_between_is_left_out(tier, blobs, monkeypatch):
    def delete():
        tier.transaction(lambda session: delete_model(session, "m"))
        prune(tier.engine, grace=AT_ONCE)

    run_first(monkeypatch, "put", delete)
    assert migrate_payloads(tier.engine, blobs, "blobs", QUIET).payloads == 0
    assert sweep(tier.engine, blobs, grace=AT_ONCE).orphans > 0
    assert not list(blobs.blobs())


def test_an_object_that_went_with_its_row_is_not_missed(tier, blobs, monkeypatch):
    migrate_payloads(tier.engine, blobs, "blobs", QUIET)

    def delete():
        tier.transaction(lambda session: delete_model(session, "m"))
        prune(tier.engine, blobs=blobs, grace=AT_ONCE)
        sweep(tier.engine, blobs, grace=AT_ONCE)

    get, gone = BlobStore.get, threading.Lock()
    monkeypatch.setattr(BlobStore, "get", lambda *arguments: (delete_once(), get(*arguments))[1])

    def delete_once():
        with gone:
            if list(blobs.blobs()):
                delete()

    assert migrate_payloads(tier.engine, blobs, "database", QUIET).payloads == 0


def test_a_chunk_encoded_anew_in_between_has_the_last_word(tier, blobs, monkeypatch):
    def change():
        with tier.session() as session:
            session.execute(text("UPDATE arc_halo.tensor_data SET payload_checksum = payload_checksum + 1"))
            session.commit()

    run_first(monkeypatch, "put", change)
    assert migrate_payloads(tier.engine, blobs, "blobs", QUIET).payloads == 0
    assert places(tier)[1] == 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda path: path.unlink(), MissingChunk),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), CorruptChunk),
        (lambda path: path.write_bytes(b"\0" * path.stat().st_size), CorruptChunk),
    ],
    ids=["missing", "short", "altered"],
)
def test_damaged_objects_do_not_come_back(tier, blobs, tmp_path, change, error):
    moved = migrate_payloads(tier.engine, blobs, "blobs", QUIET)
    change(next(path for path in (tmp_path / "blobs").rglob("*-*") if path.is_file()))
    with pytest.raises(error):
        migrate_payloads(tier.engine, blobs, "database", QUIET)
    assert places(tier)[1] == moved.payloads


def test_a_damaged_payload_stays_where_it_is(tier, blobs):
    with tier.session() as session:
        session.execute(
            text("UPDATE arc_halo.tensor_data SET payload = set_byte(payload, 0, 255 - get_byte(payload, 0))")
        )
        session.commit()
    with pytest.raises(CorruptChunk, match="repair it"):
        migrate_payloads(tier.engine, blobs, "blobs", QUIET)
    assert not list(blobs.blobs())


def test_only_the_chunks_of_a_model_are_moved(tier, blobs):
    create(tier, "other", example_tensors(seed=1))
    with tier.session() as session:
        model_id = session.scalar(text("SELECT id FROM arc_halo.models WHERE name = 'm'"))
    in_database, in_store = places(tier)
    moved = migrate_payloads(tier.engine, blobs, "blobs", QUIET, model_id=model_id)
    assert places(tier) == (in_database - moved.payloads, in_store + moved.payloads)
    check(tier, "m", example_tensors())


def test_progress_comes_to_its_end(tier, blobs):
    reports = []
    moved = migrate_payloads(tier.engine, blobs, "blobs", Meter(lambda *report: reports.append(report), "migrate", 0))
    assert reports[-1] == ("migrate", moved.nbytes, moved.nbytes)


def test_payloads_under_way_are_few(tier, migrated_url, blobs, monkeypatch):
    rng = np.random.default_rng(0)
    with connect(migrated_url) as database:
        create(database, "many", {f"t{i}": rng.integers(0, 256, 5000, dtype=np.uint8) for i in range(40)})
    update = migrate._update
    sizes = []

    def counted(driver, statement, parameters):
        sizes.append(len(parameters["digests"]))
        return update(driver, statement, parameters)

    monkeypatch.setattr(migrate, "_update", counted)
    moved = migrate_payloads(tier.engine, blobs, "blobs", QUIET)
    assert max(sizes) == BATCH_ROWS
    assert sum(sizes) == moved.payloads


def test_a_deadlock_is_no_reason_to_stop(tier, blobs):
    """Another transaction has the last row of a batch, and wants the first one while we wait for the last."""
    with tier.session() as session:
        digests = session.scalars(text(DIGESTS)).all()
        lock = text("SELECT FROM arc_halo.tensor_data WHERE digest = :digest FOR UPDATE")
        session.execute(lock, {"digest": digests[-1]})
        with ThreadPoolExecutor(1) as pool:
            moving = pool.submit(migrate_payloads, tier.engine, blobs, "blobs", QUIET)
            wait_for_lock(tier)
            with suppress(TransactionConflict):  # one of the two is chosen to give way
                session.execute(lock, {"digest": digests[0]})
            session.rollback()
            assert moving.result().payloads == len(digests)
    check(tier, "m", example_tensors())


def wait_for_lock(database):
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with database.engine.connect() as connection:
        for _ in range(600):
            if connection.scalar(waiting):
                return
            connection.rollback()
            time.sleep(0.05)
    raise AssertionError("nobody waits")


def test_readers_and_writers_do_not_notice(tier, blobs):
    expected = example_tensors()
    done = threading.Event()

    def read():
        while not done.is_set():
            with tier.session() as session:
                stored = dict(iter_tensors(session, "m"))
            assert all(stored[name].tobytes() == array.tobytes() for name, array in expected.items())

    def write():
        for seed in range(1, 6):
            create(tier, f"other{seed}", example_tensors(seed))
            prune(tier.engine, blobs=blobs, grace=AT_ONCE)
            sweep(tier.engine, blobs, grace=AT_ONCE)

    with ThreadPoolExecutor(2) as pool:
        reading, writing = pool.submit(read), pool.submit(write)
        try:
            while not writing.done():
                for to in ("blobs", "database"):
                    migrate_payloads(tier.engine, blobs, to, QUIET)
        finally:
            done.set()
        reading.result()
        writing.result()
    for seed in range(1, 6):
        check(tier, f"other{seed}", example_tensors(seed))

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from arc_halo.codecs.digest import TensorHasher
from arc_halo.dtypes import by_name
from arc_halo.errors import ConfigurationError, TransactionConflict
from arc_halo.store import ArraySource, Wanted, put_tensors
from arc_halo.store import put as store_put
from tests.fixtures.tensors import chunk_digests, count, counts, get, put, random_array, same, weights


@pytest.fixture
def everything_is_big(monkeypatch):
    """Uploads by short transactions whatever the size."""
    monkeypatch.setattr(store_put, "SMALL_NBYTES", -1)


def test_equal_content_under_other_names_adds_nothing(session):
    (first,) = put(session, weights((700, 500)))
    before = counts(session)
    again, twice = put(session, weights((700, 500)), weights((700, 500)))
    assert counts(session) == before
    assert first.tensor_id == again.tensor_id == twice.tensor_id


@pytest.mark.parametrize("other", [np.int32, np.uint8, np.float64, np.complex64])
@pytest.mark.parametrize("array", [weights((512, 1024)), np.zeros((512, 1024), np.float32)], ids=["weights", "zeros"])
def test_equal_bytes_of_another_type_share_chunks(session, array, other):
    (first,) = put(session, array)
    (second,) = put(session, array.view(other))
    assert chunk_digests(session, first) == chunk_digests(session, second)
    assert same(get(session, second), array.view(other))


def test_chunks_coded_as_numbers_are_read_as_another_type(session):
    ramp = np.arange(500_000, dtype=np.int32)
    put(session, ramp, compression="dense")
    assert session.scalar(text("SELECT count(*) FROM arc_halo.tensor_data WHERE codec = 'pco'")) > 0
    (again,) = put(session, ramp.view(np.float32))
    assert same(get(session, again), ramp.view(np.float32))


def test_a_tensor_that_repeats_itself_is_stored_once(session):
    before = count(session, "tensor_data")
    (wanted,) = put(session, np.zeros((4096, 1024), np.float32))
    assert count(session, "tensor_data") == before + 1
    assert not get(session, wanted).any()


def test_a_grown_vocabulary_shares_its_full_chunks(session):
    grown = weights((5000, 384))
    (small,) = put(session, grown[:4000])
    before = count(session, "tensor_data")
    (large,) = put(session, grown)
    shared = set(chunk_digests(session, small)) & set(chunk_digests(session, large))
    assert len(shared) == 4000 * 384 * 4 // 2**20
    assert count(session, "tensor_data") == before + len(chunk_digests(session, large)) - len(shared)


def test_no_compression_stores_the_bytes_themselves(session):
    array = weights((600, 500))
    (wanted,) = put(session, array, compression="none")
    payloads = session.execute(
        text(
            "SELECT payload FROM arc_halo.tensor_data d JOIN arc_halo.tensor_chunks c USING (tenant_id, digest)"
            " WHERE c.tensor_id = :id ORDER BY chunk_index"
        ),
        {"id": wanted.tensor_id},
    ).scalars()
    assert b"".join(payloads) == array.tobytes()


@pytest.mark.parametrize("policy", ["fast", "balanced", "dense"])
def test_no_payload_is_larger_than_its_bytes(session, policy):
    put(session, *(random_array(np.uint8, (size,), size) for size in (1, 31, 33, 5000, 2**20)), compression=policy)
    statement = "SELECT count(*) FROM arc_halo.tensor_data WHERE stored_nbytes > raw_nbytes"
    assert session.scalar(text(statement)) == 0


def test_an_unknown_policy_is_refused(session):
    with pytest.raises(ConfigurationError, match="balanced"):
        put(session, weights((3,)), compression="zip")
    assert same(get(session, put(session, weights((3,)))[0]), weights((3,)))


def test_a_small_save_is_the_callers(database):
    with database.session() as session:
        put(session, weights((900, 900)))
        with database.session() as other:
            assert counts(other) == (0, 0, 0)
        session.rollback()
        assert counts(session) == (0, 0, 0)


@pytest.mark.usefixtures("everything_is_big")
def test_a_big_save_is_there_before_the_caller_commits(database):
    array = weights((900, 900))
    with database.session() as session:
        (wanted,) = put(session, array)
        session.rollback()
    with database.session() as session:
        assert same(get(session, wanted), array)


def test_a_transaction_that_has_stored_goes_on_so(database, monkeypatch):
    with database.session() as session:
        first = put(session, weights((300, 300)))
        monkeypatch.setattr(store_put, "SMALL_NBYTES", -1)
        assert put(session, weights((300, 300)), weights((200, 200)))[0].tensor_id == first[0].tensor_id
        session.rollback()
        assert counts(session) == (0, 0, 0)


@pytest.mark.usefixtures("everything_is_big")
def test_after_a_commit_big_saves_use_transactions_of_their_own_again(database, monkeypatch):
    with database.session() as session:
        monkeypatch.setattr(store_put, "SMALL_NBYTES", 2**30)
        put(session, weights((10, 10)))
        session.commit()
        monkeypatch.setattr(store_put, "SMALL_NBYTES", -1)
        put(session, weights((20, 20)))
        session.rollback()
        assert count(session, "tensor_metadata") == 2


@pytest.mark.parametrize("small_nbytes", [-1, 2**30])
def test_an_array_that_changes_while_it_is_saved_is_named_by_the_bytes_stored(database, monkeypatch, small_nbytes):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", small_nbytes)
    array, stop = weights((1500, 1500)), threading.Event()

    def change():
        while not stop.is_set():
            array[np.random.default_rng().integers(0, 1500, 50)] += 1

    with database.session() as session, ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        (wanted,) = put(session, array)
        stop.set()
        changing.result()
        assert digest_of(get(session, wanted)) == stored_digest(session, wanted)
        session.commit()


def digest_of(array):
    hasher = TensorHasher(by_name("F32"), array.shape)
    hasher.update(array.tobytes())
    return hasher.digest()


def stored_digest(session, wanted):
    statement = text("SELECT digest FROM arc_halo.tensor_metadata WHERE id = :id")
    return session.scalar(statement, {"id": wanted.tensor_id})


class Meeting:
    """Two saves that both have written their first batch before either writes its second."""

    def __init__(self):
        self._barrier = threading.Barrier(2)
        self._met = threading.local()

    def __call__(self, phase, _done, _total):
        if phase == "store" and not getattr(self._met, "once", False):
            self._met.once = True
            with suppress(threading.BrokenBarrierError):  # the other may wait for us in the database
                self._barrier.wait(2)


@pytest.mark.parametrize("small_nbytes", [-1, 2**30])
def test_saves_of_the_same_tensors_in_another_order_do_not_deadlock(database, monkeypatch, small_nbytes):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", small_nbytes)
    given, meeting = [weights((1200, 1000), seed) for seed in range(4)], Meeting()

    def save(order):
        sources = [ArraySource(f"t{index}", given[index]) for index in order]
        with database.session() as session:
            put_tensors(session, sources, progress=meeting)
            session.commit()

    with ThreadPoolExecutor(2) as pool:
        for saved in [pool.submit(save, order) for order in ([0, 1, 2, 3], [3, 2, 1, 0])]:
            saved.result(60)
    with database.session() as session:
        assert count(session, "tensor_metadata") == 4


def test_saves_in_savepoints_of_a_session_on_a_connection(shared_database):
    with shared_database.engine.connect() as connection, connection.begin() as outer:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            wanted = put(session, weights((30, 30)))[0]
            session.commit()
            assert same(get(session, Wanted("again", wanted.tensor_id, wanted.nbytes)), weights((30, 30)))
        outer.rollback()


DEADLOCK_ONCE = """
CREATE SEQUENCE public.attempts;
CREATE FUNCTION public.deadlock_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('public.attempts') = 1 THEN RAISE EXCEPTION 'a deadlock' USING ERRCODE = 'deadlock_detected'; END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER deadlock_once AFTER INSERT ON arc_halo.tensor_data
   FOR EACH STATEMENT EXECUTE FUNCTION public.deadlock_once();
"""


def test_a_short_transaction_that_lost_a_deadlock_is_run_again(database, monkeypatch):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", -1)
    array = weights((300, 300))
    with database.session() as session:
        session.execute(text(DEADLOCK_ONCE))
        session.commit()
        (wanted,) = put(session, array)
        session.commit()
        assert same(get(session, wanted), array)
        assert session.scalar(text("SELECT last_value FROM public.attempts")) > 1


def test_a_transaction_of_the_caller_that_lost_a_deadlock_is_the_callers_to_run_again(database):
    with database.session() as session:
        session.execute(text(DEADLOCK_ONCE))
        session.commit()
        with pytest.raises(TransactionConflict):
            put(session, weights((300, 300)))

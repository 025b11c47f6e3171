from __future__ import annotations

import datetime as dt
import threading
import time

import pytest
from sqlalchemy import text

from arc_halo.errors import ConstraintViolation, NotFound, TransactionConflict
from arc_halo.store import ArraySource, prune, put_tensors
from arc_halo.store import put as store_put
from arc_halo.store.leases import release_lease
from tests.fixtures.models import bert, write_folder
from tests.fixtures.processes import import_processes
from tests.fixtures.tensors import count, weights

AT_ONCE = dt.timedelta(0)


@pytest.fixture(autouse=True)
def everything_is_big(monkeypatch):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", -1)


def leases(database):
    with database.session() as session:
        return count(session, "upload_leases")


def put(session):
    return put_tensors(session, [ArraySource("t", weights((600, 600)))])


def expire(database):
    with database.session() as session:
        session.execute(text("UPDATE arc_halo.upload_leases SET expires_at = now() - interval '1 second'"))
        session.commit()


def test_a_lease_is_given_back_when_the_caller_commits(database):
    with database.session() as session:
        put(session)
        assert leases(database) == 1
        session.commit()
    assert leases(database) == 0


def hold_no_locks(monkeypatch):
    """As behind a transaction pooler."""
    monkeypatch.setattr("arc_halo.store.leases.is_pooled", lambda _: True)


def test_what_was_rolled_back_holds_prune_up_no_longer(database):
    with database.session() as session:
        put(session)
        assert prune(database.engine, grace=AT_ONCE).chunks == 0
        session.rollback()
    assert prune(database.engine, grace=AT_ONCE).chunks == 2
    assert leases(database) == 0


def test_behind_a_pooler_prune_leaves_what_an_upload_relies_on_until_its_lease_expires(database, monkeypatch):
    hold_no_locks(monkeypatch)
    with database.session() as session:
        put(session)
        session.rollback()
    pruned = prune(database.engine, grace=AT_ONCE)
    assert (pruned.chunks, [upload.is_alive for upload in pruned.held_up_by]) == (0, [False])
    assert leases(database) == 1
    expire(database)
    assert prune(database.engine, grace=AT_ONCE).chunks == 2
    assert leases(database) == 0


def test_a_lease_behind_a_pooler_can_be_released_by_who_knows(database, monkeypatch):
    hold_no_locks(monkeypatch)
    with database.session() as session:
        put(session)
        session.rollback()
    (upload,) = prune(database.engine, grace=AT_ONCE, dry_run=True).held_up_by
    release_lease(database.engine, upload.id)
    assert prune(database.engine, grace=AT_ONCE).chunks == 2
    with pytest.raises(NotFound, match="has ended"):
        release_lease(database.engine, upload.id)


def test_prune_does_not_wait_for_a_caller_who_gives_an_expired_lease_back(database, monkeypatch):
    with database.session() as session:
        put(session)
        session.commit()
        monkeypatch.setattr("arc_halo.store.leases.LEASE_SECONDS", 0)
        put(session)
        prune(database.engine)
        assert leases(database) == 1
        session.commit()
    assert leases(database) == 0


def test_content_found_long_after_it_was_touched_is_touched_again(database):
    with database.session() as session:
        put(session)
        session.commit()
        for table in ("tensor_data", "tensor_metadata"):
            session.execute(text(f"UPDATE arc_halo.{table} SET touched_at = now() - interval '2 days'"))
        session.commit()
        put(session)
        assert prune(database.engine, grace=AT_ONCE).tensors == 0
        session.commit()
    assert prune(database.engine, grace=AT_ONCE).tensors == 1


def test_what_was_left_before_the_upload_began_is_pruned_beside_it(database):
    with database.session() as session:
        put_tensors(session, [ArraySource("other", weights((300, 300), 9))])
        session.execute(text("UPDATE arc_halo.tensor_data SET touched_at = now() - interval '2 days'"))
        session.execute(text("UPDATE arc_halo.tensor_metadata SET touched_at = now() - interval '2 days'"))
        session.commit()
        put(session)
        assert prune(database.engine, grace=AT_ONCE).tensors == 1


class Slow(ArraySource):
    """A source that is read for longer than a lease lasts."""

    seconds = 2.0

    def read_into(self, start, buffer):
        if self.seconds:
            time.sleep(self.seconds)
            self.seconds = 0.0
        super().read_into(start, buffer)


@pytest.fixture
def short_leases(monkeypatch):
    monkeypatch.setattr("arc_halo.store.leases.LEASE_SECONDS", 1)
    monkeypatch.setattr("arc_halo.store.leases.RENEW_SECONDS", 0.2)


@pytest.mark.usefixtures("short_leases")
def test_hashing_may_take_longer_than_a_lease(database):
    with database.session() as session:
        put_tensors(session, [Slow("t", weights((600, 600)))])
        session.commit()
    assert leases(database) == 0


@pytest.mark.usefixtures("short_leases")
def test_choosing_bases_may_take_longer_than_a_lease(database):
    def think(_sources):
        time.sleep(2)
        assert prune(database.engine, grace=AT_ONCE).held_up_by[0].is_alive
        return {}

    with database.session() as session:
        put_tensors(session, [ArraySource("t", weights((600, 600)))], choose_bases=think)
        session.commit()


def test_an_upload_whose_lease_is_over_stops(database, monkeypatch):
    monkeypatch.setattr("arc_halo.store.leases.LEASE_SECONDS", 0)
    with database.session() as session, pytest.raises(TransactionConflict, match="lease is over: run it again"):
        put(session)
    before = threading.active_count()
    with database.session() as session, pytest.raises(TransactionConflict):
        put(session)
    assert threading.active_count() == before


CONNECTIONS = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")


def test_an_upload_that_may_not_begin_leaves_no_connections(database):
    with database.session() as session:
        session.execute(text("ALTER TABLE arc_halo.upload_leases ADD CONSTRAINT none CHECK (nbytes < 0) NOT VALID"))
        session.commit()
        before = session.scalar(CONNECTIONS)
        with pytest.raises(ConstraintViolation):
            put(session)
        session.rollback()
        assert session.scalar(CONNECTIONS) == before


@pytest.mark.usefixtures("short_leases")
def test_a_lease_that_is_over_is_not_renewed(database):
    def sleep_like_a_laptop(_sources):
        expire(database)
        time.sleep(0.5)
        return {}

    with database.session() as session, pytest.raises(TransactionConflict):
        put_tensors(session, [ArraySource("t", weights((600, 600)))], choose_bases=sleep_like_a_laptop)


def test_an_upload_that_was_killed_holds_prune_up_no_longer(database, migrated_url, tmp_path):
    folder = write_folder(
        bert(), tmp_path / "m", arrays={f"t{index}": weights((900, 900), index) for index in range(8)}
    )
    with import_processes(migrated_url, (folder, "m", "--small-nbytes", "-1", "--pause", "store")) as (process,):
        assert process.wait_for_pause() == "store"
        pruned = prune(database.engine, grace=AT_ONCE)
        (upload,) = pruned.held_up_by
        assert (pruned.chunks, upload.is_alive) == (0, True)
        assert str(process.process.pid) in upload.description
        with pytest.raises(NotFound, match="is alive"):
            release_lease(database.engine, upload.id)
        process.kill()
        wait_for_its_connections_to_go(database)
    assert prune(database.engine, grace=AT_ONCE).held_up_by == ()
    with database.session() as session:
        assert count(session, "tensor_data") == 0


def wait_for_its_connections_to_go(database):
    with database.session() as session:
        while session.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1")):
            session.rollback()
            time.sleep(0.01)

from __future__ import annotations

import datetime as dt

import pytest
from sqlalchemy import text

from arc_halo.store import ArraySource, prune, put_tensors
from arc_halo.store import put as store_put
from arc_halo.store.leases import RENEW_SECONDS, Lease
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


def test_prune_leaves_what_an_upload_relies_on_until_its_lease_expires(database):
    with database.session() as session:
        put(session)
        session.rollback()
    assert prune(database.engine, grace=AT_ONCE).chunks == 0
    assert leases(database) == 1
    expire(database)
    assert prune(database.engine, grace=AT_ONCE).chunks == 2
    assert leases(database) == 0


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


def test_a_lease_is_renewed_when_some_time_has_passed(database, monkeypatch):
    clock = iter([100.0, 101.0, 100.0 + 2 * RENEW_SECONDS])
    monkeypatch.setattr("arc_halo.store.leases.time.monotonic", lambda: next(clock))
    lease = Lease(5)
    expiries = []
    for _ in range(3):
        with database.session() as session:
            lease.keep(session.connection().connection.driver_connection)
            session.commit()
            expiries.append(session.scalar(text("SELECT expires_at FROM arc_halo.upload_leases")))
    assert expiries[0] == expiries[1] < expiries[2]

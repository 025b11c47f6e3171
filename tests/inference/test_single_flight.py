"""Of all who ask for a key at once one computes, whatever happens to it."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event, func, select, text

from arc_halo.errors import CacheError, DatabaseUnavailable
from arc_halo.inference.single_flight import single_flight
from arc_halo.schema import CacheLease
from tests.fixtures.single_flight_process import CALLS, RESULTS, ask, ask_in
from tests.schema.rows import digest

SPAWN = multiprocessing.get_context("spawn")
KEY = digest("key")


@pytest.fixture
def results(database):
    """A database with a place for what is computed, and for who did."""
    with database.engine.begin() as connection:
        connection.execute(text(RESULTS))
        connection.execute(text(CALLS))
    return database


def calls(database):
    with database.engine.connect() as connection:
        return [pid for (pid,) in connection.execute(text("SELECT pid FROM calls"))]


def lease_count(database):
    with database.session() as session:
        return session.scalar(select(func.count()).select_from(CacheLease))


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Asking:
    """Processes that ask for one key, all at once."""

    def __init__(self, url, count, seconds, lease_seconds):
        self.started, self.answers = SPAWN.Barrier(count), SPAWN.Queue()
        arguments = (url.render_as_string(hide_password=False), KEY, self.started, self.answers)
        options = {"seconds": seconds, "lease_seconds": lease_seconds}
        self.processes = [SPAWN.Process(target=ask, args=arguments, kwargs=options) for _ in range(count)]
        for each in self.processes:
            each.start()

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        for each in self.processes:
            each.kill()
            each.join()
            each.close()
        self.answers.close()
        self.answers.join_thread()

    def answered(self, count):
        return [self.answers.get(timeout=120) for _ in range(count)]


def test_one_of_sixteen_processes_computes(results, migrated_url):
    with Asking(migrated_url, 16, seconds=1.0, lease_seconds=10) as asking:
        answers = asking.answered(16)
    (pid,) = calls(results)
    assert {value for value, _ in answers} == {f"computed by {pid}"}
    assert sorted(is_computed for _, is_computed in answers) == [False] * 15 + [True]
    assert lease_count(results) == 0


def test_another_takes_over_from_one_that_was_killed(results, migrated_url):
    with Asking(migrated_url, 3, seconds=3.0, lease_seconds=4.0) as asking:
        wait_for(lambda: calls(results))
        (killed,) = calls(results)
        os.kill(killed, signal.SIGKILL)
        answers = asking.answered(2)
    _, second = calls(results)
    assert second != killed
    assert {value for value, _ in answers} == {f"computed by {second}"}
    assert lease_count(results) == 0


def test_one_of_many_threads_computes(results):
    with ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(lambda _: ask_in(results, KEY, 0.3), range(24)))
    assert len(calls(results)) == 1
    assert sum(is_computed for _, is_computed in answers) == 1


def test_a_lease_is_renewed_for_as_long_as_it_is_computed(results):
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: ask_in(results, KEY, 4.0, lease_seconds=2.0), range(2)))
    assert len(calls(results)) == 1


def test_what_is_stored_is_not_computed(results):
    value, _ = ask_in(results, KEY, 0)
    assert ask_in(results, KEY, 0) == (value, False)


def test_keys_and_tenants_do_not_wait_for_each_other(database):
    def inner(tenant_id, key):
        return lambda: single_flight(database, tenant_id, key, lambda: None, lambda: "inner", wait_seconds=60)[0]

    for tenant_id, key in ((0, digest("another")), (1, KEY)):
        assert single_flight(database, 0, KEY, lambda: None, inner(tenant_id, key)) == ("inner", True)


def test_who_waits_takes_over_from_one_whose_computation_fails(results):
    is_computing, may_fail = threading.Event(), threading.Event()

    def fail():
        is_computing.set()
        may_fail.wait()
        raise ZeroDivisionError

    with ThreadPoolExecutor(2) as threads:
        failing = threads.submit(single_flight, results, 0, KEY, lambda: None, fail)
        is_computing.wait()
        waiting = threads.submit(ask_in, results, KEY, 0)
        time.sleep(0.1)
        assert not waiting.done()
        may_fail.set()
        with pytest.raises(ZeroDivisionError):
            failing.result()
        assert waiting.result()[1]
    assert lease_count(results) == 0


def test_who_has_waited_long_enough_computes(results):
    def wait_inside():
        return ask_in(results, KEY, 0, wait_seconds=0.2)

    (_, is_computed), _ = single_flight(results, 0, KEY, lambda: None, wait_inside)
    assert is_computed
    assert lease_count(results) == 0


def test_who_took_the_lease_looks_again(database):
    found = iter([None, "stored meanwhile"])
    assert single_flight(database, 0, KEY, lambda: next(found), lambda: 1 / 0) == ("stored meanwhile", False)
    assert lease_count(database) == 0


def test_no_connection_is_in_use_while_it_is_computed(database):
    assert single_flight(database, 0, KEY, lambda: None, database.engine.pool.checkedout) == (0, True)


def test_every_statement_is_a_transaction_of_its_own(database):
    isolation = []
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda connection, *_: isolation.append(connection.get_execution_options().get("isolation_level")),
    )
    single_flight(database, 0, KEY, lambda: None, lambda: 1)
    assert set(isolation) == {"AUTOCOMMIT"}


def test_a_database_that_is_away_keeps_nobody_from_computing(database, monkeypatch, caplog):
    def away(*_arguments, **_options):
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(database.engine, "connect", away)
    assert single_flight(database, 0, KEY, lambda: None, lambda: 1) == (1, True)
    assert single_flight(database, 0, KEY, away, lambda: 2) == (2, True)
    assert "away" in caplog.text


def test_a_database_that_goes_away_meanwhile_does_not_lose_the_result(database, monkeypatch):
    def compute():
        monkeypatch.setattr(database.engine, "connect", lambda: (_ for _ in ()).throw(DatabaseUnavailable("away")))
        time.sleep(0.3)
        return 1

    assert single_flight(database, 0, KEY, lambda: None, compute, lease_seconds=0.3) == (1, True)


def test_other_errors_of_looking_are_raised(database):
    with pytest.raises(ZeroDivisionError):
        single_flight(database, 0, KEY, lambda: 1 / 0, lambda: 1)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        (b"short", {}),
        (KEY, {"lease_seconds": 0}),
        (KEY, {"lease_seconds": float("nan")}),
        (KEY, {"lease_seconds": float("inf")}),
        (KEY, {"wait_seconds": -1}),
        (KEY, {"wait_seconds": float("nan")}),
    ],
)
def test_what_makes_no_sense_is_refused(database, key, options):
    with pytest.raises(CacheError):
        single_flight(database, 0, key, lambda: None, lambda: 1, **options)

from __future__ import annotations

import threading

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from arc_halo import errors
from arc_halo.database.engine import application_engine
from arc_halo.database.transaction import UNSTORED, run_transaction
from arc_halo.database.translate import driver_errors
from arc_halo.database.url import parse_url
from arc_halo.schema import Model

ADD = text("UPDATE counter SET n = n + 1")
COUNT = text("SELECT n FROM counter")


@pytest.fixture
def database_url(migrated_url):
    """A database with the table of operations; ``engine`` and ``proxy`` lead there."""
    return migrated_url


def raise_sqlstate(session, sqlstate):
    session.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'said so' USING ERRCODE = '{sqlstate}'; END $$"))


def counting(engine):
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE counter AS SELECT 0 AS n"))


def count(engine):
    with engine.connect() as connection:
        return connection.scalar(COUNT)


@pytest.fixture
def cuttable(proxy, impatient):
    engine = application_engine(proxy.url, impatient)
    counting(engine)
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("arc_halo.database.backoff.FIRST_SECONDS", 0.001)


def test_the_result_is_returned_and_the_work_committed(engine):
    counting(engine)
    assert run_transaction(lambda: Session(engine), lambda session: session.execute(ADD).rowcount) == 1
    assert count(engine) == 1


def test_a_unit_is_committed(database):
    database.transaction(lambda session: session.execute(text("CREATE TABLE a AS SELECT 1 AS n")))
    assert database.transaction(lambda session: session.scalar(text("SELECT n FROM a"))) == 1


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03", "57P01", "57P02", "57P03", "08006", "53300"])
def test_passing_troubles_are_tried_again_from_the_start(engine, sqlstate):
    counting(engine)
    attempts = []

    def unit(session):
        session.execute(ADD)
        attempts.append(1)
        if len(attempts) < 3:
            raise_sqlstate(session, sqlstate)

    run_transaction(lambda: Session(engine), unit)
    assert len(attempts) == 3
    assert count(engine) == 1


@pytest.mark.parametrize("sqlstate", ["25P04", "53100", "57014", "22012", "42601", "23505"])
def test_other_troubles_are_not(engine, sqlstate):
    attempts = []

    def unit(session):
        attempts.append(1)
        raise_sqlstate(session, sqlstate)

    with pytest.raises((errors.DatabaseError, DBAPIError)):
        run_transaction(lambda: Session(engine), unit)
    assert len(attempts) == 1


def test_a_transaction_that_took_too_long_says_so_and_is_not_run_again(engine):
    attempts = []

    def unit(session):
        attempts.append(1)
        session.execute(text("SET LOCAL transaction_timeout TO '50ms'"))
        session.execute(text("SELECT pg_sleep(60)"))

    with pytest.raises(errors.StatementTimeout, match="in parts"):
        run_transaction(lambda: Session(engine), unit)
    assert len(attempts) == 1
    assert run_transaction(lambda: Session(engine), lambda session: session.scalar(text("SELECT 1"))) == 1


def test_attempts_end(engine):
    attempts = []

    def unit(session):
        attempts.append(1)
        raise_sqlstate(session, "40001")

    with pytest.raises(errors.TransactionConflict):
        run_transaction(lambda: Session(engine), unit, attempts=2)
    assert len(attempts) == 2


def test_concurrent_serializable_units_all_count(engine):
    counting(engine)

    def unit(session):
        seen = session.scalar(COUNT)
        session.execute(text("UPDATE counter SET n = :n"), {"n": seen + 1})

    def work():
        for _ in range(5):
            run_transaction(lambda: Session(engine), unit, attempts=50, isolation_level="SERIALIZABLE")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(engine) == 20


def test_a_link_cut_in_the_unit_is_no_harm(cuttable, proxy):
    cut_once = [proxy.cut]

    def unit(session):
        session.execute(ADD)
        if cut_once:
            cut_once.pop()()
        session.execute(ADD)

    run_transaction(lambda: Session(cuttable), unit)
    assert count(cuttable) == 2


def test_a_link_cut_in_a_copy_is_no_harm(cuttable, proxy):
    def unit(session):
        cursor = session.connection().connection.cursor()
        with driver_errors(), cursor.copy("COPY counter FROM STDIN") as copy:
            copy.write(b"5\n")
            if cut_once:
                cut_once.pop()()
            copy.write(b"6\n" * 100_000)

    cut_once = [proxy.cut]
    run_transaction(lambda: Session(cuttable), unit)
    with cuttable.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM counter")) == 100_002


def test_a_link_cut_in_a_fetch_is_no_harm(cuttable, proxy):
    def unit(session):
        connection = session.connection().connection
        with driver_errors(), connection.cursor("streaming") as cursor:
            cursor.execute("SELECT generate_series(1, 50000)")
            seen = cursor.fetchmany(100)
            if cut_once:
                cut_once.pop()()
            return len(seen + cursor.fetchall())

    cut_once = [proxy.cut]
    assert run_transaction(lambda: Session(cuttable), unit) == 50_000


@pytest.mark.parametrize(("moment", "runs"), [("cut_before", 2), ("cut_after", 1)])
def test_a_lost_answer_to_commit_is_looked_for(cuttable, proxy, moment, runs):
    attempts = []

    def unit(session):
        attempts.append(session.execute(ADD))
        if len(attempts) == 1:
            setattr(proxy, moment, b"COMMIT")
        return len(attempts)

    assert run_transaction(lambda: Session(cuttable), unit) == len(attempts) == runs
    assert count(cuttable) == 1


def test_objects_are_whole_after_an_answer_was_lost(cuttable, proxy):
    def unit(session):
        model = Model(name="m", version="1", model_type="t", status="trained", architecture_config={"a": 1})
        session.add(model)
        session.flush()
        proxy.cut_after = b"COMMIT"
        return model

    model = run_transaction(lambda: Session(cuttable), unit)
    assert (model.name, model.architecture_config) == ("m", {"a": 1})
    with Session(cuttable) as session:
        assert session.get_one(Model, model.id).version == "1"


def test_a_transaction_that_waits_for_a_commit_that_never_comes_is_ended(cuttable, proxy, monkeypatch):
    monkeypatch.setattr("arc_halo.database.unanswered.ABANDONED_SECONDS", 0.3)
    attempts = []

    def unit(session):
        attempts.append(session.execute(ADD))
        if len(attempts) == 1:
            proxy.abandon_before = b"COMMIT"

    run_transaction(lambda: Session(cuttable), unit)
    assert (len(attempts), count(cuttable)) == (2, 1)


def test_trouble_while_asking_is_no_answer(cuttable, proxy):
    sessions = []

    def open_session():
        sessions.append(1)
        if len(sessions) == 2:
            raise errors.PoolExhausted("all connections are in use")
        return Session(cuttable)

    def unit(session):
        proxy.cut_after = b"COMMIT"
        return session.execute(ADD).rowcount

    assert run_transaction(open_session, unit) == 1
    assert (len(sessions), count(cuttable)) == (3, 1)


def test_a_server_that_recovers_is_asked_until_it_is_the_primary(cuttable, proxy):
    with cuttable.begin() as connection:
        connection.execute(text("CREATE SCHEMA standby"))
        connection.execute(text("CREATE FUNCTION standby.pg_is_in_recovery() RETURNS bool RETURN true"))
        connection.execute(
            text(f"ALTER DATABASE {cuttable.url.database} SET search_path TO standby, pg_catalog, public")
        )
    cuttable.dispose()
    sessions = []

    def open_session():
        sessions.append(1)
        if len(sessions) == 3:
            with cuttable.begin() as connection:
                connection.execute(text("DROP SCHEMA standby CASCADE"))
        return Session(cuttable)

    def unit(session):
        if len(sessions) == 1:
            proxy.cut_before = b"COMMIT"
        session.execute(ADD)

    run_transaction(open_session, unit)
    assert (len(sessions), count(cuttable)) == (4, 1)


def test_what_only_read_is_run_again_when_its_answer_is_lost(cuttable, proxy):
    attempts = []

    def unit(session):
        if not attempts:
            proxy.cut_after = b"COMMIT"
        attempts.append(session.scalar(COUNT))
        return attempts[-1]

    assert run_transaction(lambda: Session(cuttable), unit, isolation_level="SERIALIZABLE") == 0
    assert len(attempts) == 2


def test_a_database_that_does_not_come_back_leaves_the_id_to_look_for(cuttable, proxy, monkeypatch):
    monkeypatch.setattr("arc_halo.database.unanswered.PATIENCE_SECONDS", 0.5)

    def unit(session):
        session.execute(ADD)
        proxy.cut_after = b"COMMIT"
        proxy.stop()

    with pytest.raises(errors.CommitUnanswered, match=r"arc_halo\.operations has a row [0-9a-f-]{36}"):
        run_transaction(lambda: Session(cuttable), unit)


def test_what_only_read_notes_nothing(engine):
    run_transaction(lambda: Session(engine), lambda session: session.execute(text("SELECT 1")))
    run_transaction(lambda: Session(engine), lambda session: session.execute(text("SET TRANSACTION READ ONLY")))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM arc_halo.operations")) == 0


def test_an_unreachable_server_is_not_tried_for_a_second_round(impatient):
    engine = application_engine(parse_url("postgresql://127.0.0.1:1/db"), impatient)
    rounds = []

    def open_session():
        rounds.append(1)
        return Session(engine)

    with pytest.raises(errors.DatabaseUnavailable, match="after 2 attempts"):
        run_transaction(open_session, lambda session: session.execute(COUNT))
    assert len(rounds) == 1


def test_a_violation_found_at_commit_is_told(engine):
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE a (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
    with pytest.raises(errors.ConstraintViolation):
        run_transaction(lambda: Session(engine), lambda session: session.execute(text("INSERT INTO a VALUES (1), (1)")))


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_that_a_failed_rollback_hides_is_not_run_again(engine, interrupt):
    runs = []

    def unit(_session):
        runs.append(1)
        failed = errors.DatabaseUnavailable("another command is already in progress")
        failed.__context__ = interrupt()
        raise failed

    with pytest.raises(interrupt) as caught:
        run_transaction(lambda: Session(engine), unit)
    assert runs == [1]
    assert caught.value.__notes__ == [UNSTORED]


def test_an_interrupt_during_commit_claims_nothing(engine):
    class Interrupted(Session):
        def commit(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run_transaction(lambda: Interrupted(engine), lambda session: session.execute(text("SELECT 1")))
    assert not hasattr(caught.value, "__notes__")

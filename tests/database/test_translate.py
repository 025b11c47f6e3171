from __future__ import annotations

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from arc_halo import errors
from arc_halo.database.translate import driver_errors

RAISE = "DO $$ BEGIN RAISE EXCEPTION 'said so' USING ERRCODE = '{}'; END $$"
TRANSLATED = {
    "08006": errors.DatabaseUnavailable,
    "23505": errors.ConstraintViolation,
    "25P04": errors.StatementTimeout,
    "25006": errors.ReadOnlyDatabase,
    "40001": errors.TransactionConflict,
    "40P01": errors.TransactionConflict,
    "42501": errors.PermissionDenied,
    "53100": errors.DiskFull,
    "53300": errors.DatabaseUnavailable,
    "55P03": errors.LockTimeout,
    "57014": errors.StatementTimeout,
    "57P01": errors.DatabaseUnavailable,
    "57P02": errors.DatabaseUnavailable,
    "57P03": errors.DatabaseUnavailable,
}


@pytest.mark.parametrize(("sqlstate", "kind"), TRANSLATED.items())
def test_a_session_raises_our_error_and_works_on(engine, sqlstate, kind):
    with Session(engine) as session:
        with pytest.raises(kind, match="said so; ") as raised:
            session.execute(text(RAISE.format(sqlstate)))
        assert type(raised.value) is kind
        assert raised.value.sqlstate == sqlstate
        assert isinstance(raised.value.__cause__, psycopg.Error)
        session.rollback()
        assert session.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize("sqlstate", ["22012", "42601", "P0001"])
def test_mistakes_in_sql_stay_sqlalchemys(engine, sqlstate):
    with engine.connect() as connection, pytest.raises(DBAPIError, match="RAISE EXCEPTION"):
        connection.execute(text(RAISE.format(sqlstate)))


def test_a_violation_names_its_constraint(engine):
    with engine.connect() as connection:
        connection.execute(text("CREATE TEMP TABLE a (n int CONSTRAINT ck_a_positive CHECK (n > 0))"))
        with pytest.raises(errors.ConstraintViolation) as raised:
            connection.execute(text("INSERT INTO a VALUES (:n)"), {"n": -1})
    assert raised.value.constraint == "ck_a_positive"


def test_a_violation_shows_the_key_and_never_the_row(engine):
    with engine.connect() as connection:
        connection.execute(text("CREATE TEMP TABLE a (n int UNIQUE, secret text NOT NULL, CHECK (n > 0))"))
        connection.execute(text("INSERT INTO a VALUES (1, 's3cret')"))
        connection.commit()
        for values, shown in (("1, 's3cret'", "Key (n)=(1)"), ("7, NULL", "null value"), ("-1, 's3cret'", "check")):
            with pytest.raises(errors.ConstraintViolation) as raised:
                connection.execute(text(f"INSERT INTO a VALUES ({values})"))
            assert shown in str(raised.value)
            assert "s3cret" not in str(raised.value)
            connection.rollback()


def test_copy_through_the_driver_is_translated_too(engine):
    with engine.connect() as connection:
        connection.execute(text("CREATE TEMP TABLE a (n int UNIQUE)"))
        cursor = connection.connection.cursor()
        with pytest.raises(errors.ConstraintViolation), driver_errors(), cursor.copy("COPY a FROM STDIN") as copy:
            copy.write(b"1\n1\n")


def test_other_driver_errors_pass(engine):
    with engine.connect() as connection, pytest.raises(psycopg.errors.SyntaxError), driver_errors():
        connection.connection.cursor().execute("SELEC")


def test_parameters_are_not_shown(engine):
    with engine.connect() as connection, pytest.raises(DBAPIError) as raised:
        connection.execute(text("SELECT 1 / (length(:word) - 6)"), {"word": "s3cret"})
    assert "s3cret" not in str(raised.value)

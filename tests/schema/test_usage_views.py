"""Latency of inference by session and day, against numpy; and partitions of months that are dropped."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from arc_halo.schema import CacheStatus, InferenceLatency, InferenceMetric, InferenceSession
from arc_halo.testing.databases import rolled_back_session
from tests.schema.rows import add, add_model

DAY = dt.datetime(2031, 5, 10, tzinfo=dt.UTC)
SHARES = (50, 90, 99)
DROP = text("SELECT arc_halo.drop_time_partitions(:table, :before)")
ENSURE = text("SELECT arc_halo.ensure_time_partitions('arc_halo.inference_metrics', :start, :ahead)")
PARTITIONS = text(
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = 'arc_halo.inference_metrics'::regclass ORDER BY c.relname"
)
TABLE = "arc_halo.inference_metrics"

seconds = st.floats(0, 1e6, allow_subnormal=False)
counts = st.none() | st.integers(0, 2**31 - 1)
figures = st.fixed_dictionaries(
    {
        "session": st.integers(0, 1),
        "recorded_at": st.timedeltas(dt.timedelta(0), dt.timedelta(days=3)).map(lambda after: DAY + after),
        "latency_seconds": seconds,
        "time_to_first_token_seconds": st.none() | seconds,
        "tokens_per_second": st.none() | seconds,
        "prompt_token_count": counts,
        "generated_token_count": counts,
        "cached_token_count": counts,
        "memory_nbytes": st.none() | st.integers(0, 2**62),
    }
)


@pytest.mark.parametrize("view", [CacheStatus, InferenceLatency])
def test_mapped_columns_are_those_of_the_database_in_order_and_type(session, view):
    found = inspect(session.connection()).get_columns(view.__table__.name, schema="arc_halo")
    dialect = session.connection().dialect
    declared = [(column.name, column.type.compile(dialect)) for column in view.__table__.c]
    assert [(column["name"], column["type"].compile(dialect)) for column in found] == declared


def percentiles(values):
    known = [value for value in values if value is not None]
    return [None] * 3 if not known else np.percentile(np.array(known), SHARES).tolist()


def shown(row, name):
    names = [f"{name}_p{share}_seconds" if name != "tokens_per_second" else f"{name}_p{share}" for share in SHARES]
    return [getattr(row, each) for each in names]


def total(rows, name):
    return sum(row[name] or 0 for row in rows)


def share(rows):
    both = [row for row in rows if row["prompt_token_count"] is not None and row["cached_token_count"] is not None]
    return total(both, "cached_token_count") / prompts if (prompts := total(both, "prompt_token_count")) else None


def check_day(row, rows):
    assert row.request_count == len(rows)
    assert shown(row, "latency") == pytest.approx(percentiles([each["latency_seconds"] for each in rows]), rel=1e-9)
    for name, column in (("time_to_first_token", "_seconds"), ("tokens_per_second", "")):
        expected = percentiles([each[name + column] for each in rows])
        assert shown(row, name) == (expected if None in expected else pytest.approx(expected, rel=1e-9))
    for name in ("prompt_token_count", "generated_token_count", "cached_token_count"):
        assert getattr(row, name) == total(rows, name)
    expected = share(rows)
    assert row.cached_share == (expected if expected is None else pytest.approx(expected))
    assert row.max_memory_nbytes == max((m for each in rows if (m := each["memory_nbytes"]) is not None), default=None)


@settings(max_examples=25, deadline=None)
@given(st.lists(figures, max_size=40), st.sampled_from(["UTC", "Pacific/Auckland"]))
def test_the_view_is_what_numpy_says(shared_database, requests, zone):
    with rolled_back_session(shared_database) as session:
        session.execute(text(f"SET LOCAL TimeZone = '{zone}'"))
        session.scalar(ENSURE, {"start": DAY, "ahead": 0})
        model = add_model(session)
        ids = [add(session, InferenceSession(model=model, name=f"s{number}")).id for number in range(2)]
        days = {}
        for number, figure in enumerate(requests):
            row = {name: value for name, value in figure.items() if name != "session"}
            key = ids[figure["session"]], row["recorded_at"].date()
            session.add(InferenceMetric(inference_session_id=key[0], request_number=number, **row))
            days.setdefault(key, []).append(row)
        session.flush()
        found = {(row.inference_session_id, row.day): row for row in session.scalars(select(InferenceLatency))}
        assert set(found) == set(days)
        for key, rows in days.items():
            check_day(found[key], rows)
            assert (found[key].model, found[key].session_name) == ("model@1", f"s{ids.index(key[0])}")


def drop(session, before, table=TABLE):
    return session.scalar(DROP, {"table": table, "before": before})


def names(session):
    return session.scalars(PARTITIONS).all()


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland"])
@pytest.mark.parametrize("style", ["ISO", "German", "SQL, DMY"])
def test_only_whole_months_that_are_over_are_dropped(session, zone, style):
    session.execute(text(f"SET LOCAL TimeZone = '{zone}'"))
    session.execute(text(f"SET LOCAL DateStyle = '{style}'"))
    kept = names(session)
    session.scalar(ENSURE, {"start": dt.datetime(2020, 1, 1, tzinfo=dt.UTC), "ahead": 3})
    march = dt.datetime(2020, 3, 1, tzinfo=dt.UTC)
    assert drop(session, march - dt.timedelta(microseconds=1)) == 1
    assert names(session) == [f"inference_metrics_2020_0{month}" for month in (2, 3, 4)] + kept
    assert [drop(session, march), drop(session, march)] == [1, 0]
    assert names(session) == [f"inference_metrics_2020_0{month}" for month in (3, 4)] + kept
    assert session.scalar(text("SHOW TimeZone")) == zone


def test_rows_go_with_their_month_and_sessions_stay(session):
    inference = add(session, InferenceSession(model=add_model(session)))
    for number, month in enumerate((1, 2)):
        time = dt.datetime(2020, month, 20, tzinfo=dt.UTC)
        session.scalar(ENSURE, {"start": time, "ahead": 0})
        place = {"inference_session_id": inference.id, "request_number": number, "recorded_at": time}
        add(session, InferenceMetric(**place, latency_seconds=1))
    assert drop(session, dt.datetime(2020, 2, 20, tzinfo=dt.UTC)) == 1
    assert session.scalars(select(InferenceMetric.request_number)).all() == [1]
    assert session.scalars(select(InferenceSession.id)).all() == [inference.id]


def test_partitions_without_an_end_stay(session):
    session.execute(text(f"CREATE TABLE arc_halo.rest PARTITION OF {TABLE} DEFAULT"))
    session.execute(
        text(
            f"CREATE TABLE arc_halo.far PARTITION OF {TABLE} FOR VALUES FROM ('2100-01-01 00:00+00') TO (MAXVALUE);"
            f"CREATE TABLE arc_halo.first PARTITION OF {TABLE} FOR VALUES FROM (MINVALUE) TO ('2019-01-01 00:00+00')"
        )
    )
    assert drop(session, dt.datetime(2020, 1, 1, tzinfo=dt.UTC)) == 1
    assert {"rest", "far"} <= set(names(session))
    assert "first" not in names(session)


@pytest.mark.parametrize("table", ["arc_halo.models", "arc_halo.training_metrics", "pg_catalog.pg_class"])
def test_only_our_tables_lose_time_partitions(session, table):
    with pytest.raises(ProgrammingError, match="no table of schema arc_halo"):
        drop(session, dt.datetime(2020, 1, 1, tzinfo=dt.UTC), table)


@pytest.mark.parametrize("before", [None, "infinity", "2999-01-01"])
def test_what_may_still_be_written_to_is_never_dropped(session, before):
    with pytest.raises(DBAPIError, match="may still be written to"):
        session.scalar(
            text("SELECT arc_halo.drop_time_partitions(:table, CAST(:before AS timestamptz))"),
            {"table": TABLE, "before": before},
        )

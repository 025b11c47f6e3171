from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import URL

from arc_halo.database.engine import application_engine
from arc_halo.database.url import (
    configured_url,
    connect_arguments,
    is_local,
    is_pooled,
    libpq_string,
    parse_url,
    printable,
    require_direct,
    split_secrets,
)
from arc_halo.errors import ConfigurationError
from arc_halo.settings import Settings

NEON = "postgresql://u:p@ep-cool-name-123456.eu-central-1.aws.neon.tech/db"
POOLER = NEON.replace("123456", "123456-pooler")


@pytest.fixture
def settings():
    return Settings(_env_file=None, statement_timeout_seconds=1.5)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_spelling_means_psycopg_3(scheme):
    assert parse_url(f"{scheme}://localhost/db").drivername == "postgresql+psycopg"


@pytest.mark.parametrize("scheme", ["postgresql+psycopg2", "postgresql+asyncpg", "mysql", "sqlite"])
def test_other_drivers_are_refused(scheme):
    with pytest.raises(ConfigurationError, match="psycopg 3"):
        parse_url(f"{scheme}://localhost/db")


@pytest.mark.parametrize("text", ["", "localhost", "postgresql://u:s3cret@h:port/db"])
def test_unreadable_urls_are_refused_without_their_password(text):
    with pytest.raises(ConfigurationError) as refused:
        parse_url(text)
    assert "s3cret" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "text",
    ["postgresql:///db", "postgresql://127.0.0.1/db", "postgresql://[::1]/db", "postgresql:///db?host=/run/postgresql"],
)
def test_local_hosts_are_left_as_they_are(text, monkeypatch):
    monkeypatch.delenv("PGHOST", raising=False)
    url = parse_url(text)
    assert is_local(url)
    assert "sslmode" not in url.query


def test_remote_hosts_get_verified_tls():
    wanted = {"sslmode": "verify-full", "sslrootcert": "system", "channel_binding": "require"}
    assert parse_url(NEON).query == wanted


def test_the_host_of_the_environment_counts(monkeypatch):
    monkeypatch.setenv("PGHOST", "db.example.org")
    assert parse_url("postgresql:///db").query["sslmode"] == "verify-full"


@pytest.mark.parametrize("query", ["host=localhost&host=db.example.org", "host=localhost,db.example.org:5433"])
def test_one_remote_host_among_several_is_enough(query):
    assert not is_local(parse_url(f"postgresql:///db?{query}"))


def test_a_url_that_names_its_sslmode_is_taken_at_its_word():
    assert parse_url(f"{NEON}?sslmode=require").query == {"sslmode": "require"}


def test_other_tls_settings_of_the_url_are_kept():
    url = parse_url(f"{NEON}?sslrootcert=/ca.pem&channel_binding=prefer")
    assert url.query == {"sslmode": "verify-full", "sslrootcert": "/ca.pem", "channel_binding": "prefer"}


def test_poolers_are_known_by_their_first_label():
    assert is_pooled(parse_url(POOLER))
    assert not is_pooled(parse_url(NEON))
    assert not is_pooled(parse_url("postgresql://db.my-pooler.org/db"))


def test_migrations_are_sent_to_the_direct_host():
    with pytest.raises(ConfigurationError, match=r"use the direct host ep-cool-name-123456\.eu"):
        require_direct(parse_url(POOLER), "a migration")
    require_direct(parse_url(NEON), "a migration")


def test_direct_connections_carry_timeouts_and_our_name(settings):
    arguments = connect_arguments(parse_url(NEON), settings)
    assert arguments["connect_timeout"] == 10
    assert arguments["application_name"] == "arc-halo"
    assert arguments["options"] == "-c statement_timeout=1500"
    assert "prepare_threshold" not in arguments


def test_poolers_get_no_session_state(settings):
    arguments = connect_arguments(parse_url(POOLER), settings)
    assert arguments["prepare_threshold"] is None
    assert "options" not in arguments


@pytest.mark.parametrize(("text", "threshold"), [("0", 0), ("7", 7), ("none", None)])
def test_a_prepare_threshold_is_what_psycopg_wants(database_url, impatient, text, threshold):
    url = database_url.update_query_dict({"prepare_threshold": text})
    engine = application_engine(parse_url(url), impatient)
    with engine.connect() as connection:
        assert connection.connection.driver_connection.prepare_threshold == threshold
    engine.dispose()
    assert "prepare_threshold" not in libpq_string(url)


@pytest.mark.parametrize("text", ["few", "-1", "1.5", "1_000", "9" * 5000])
def test_another_prepare_threshold_is_refused(text):
    with pytest.raises(ConfigurationError, match="neither a count nor none"):
        parse_url(f"{NEON}?prepare_threshold={text}")


def test_a_pooler_of_another_name_is_told_by_the_url(settings):
    url = parse_url("postgresql://localhost:6432/db?prepare_threshold=none")
    assert is_pooled(url)
    assert "options" not in connect_arguments(url, settings)
    with pytest.raises(ConfigurationError, match="use the direct host and port, without prepare_threshold=none"):
        require_direct(url, "a migration")
    assert not is_pooled(parse_url("postgresql://localhost:6432/db?prepare_threshold=0"))


def test_what_the_url_says_wins(settings):
    url = parse_url("postgresql://localhost/db?connect_timeout=3&application_name=mine&options=-c%20jit%3Doff")
    assert connect_arguments(url, settings) == {"options": "-c jit=off -c statement_timeout=1500"}


def test_the_configured_url_is_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost/second")
    assert configured_url(Settings(_env_file=None)).database == "second"
    monkeypatch.setenv("ARC_HALO_DATABASE_URL", "postgresql://localhost/first")
    assert configured_url(Settings(_env_file=None)).database == "first"


def test_no_url_means_the_embedded_server(monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("ARC_HALO_DATABASE_URL", raising=False)
    assert configured_url(Settings(_env_file=None)) is None


@given(secret=st.text(st.characters(codec="utf-8"), min_size=1).map(lambda text: f"<{text}>"))
def test_no_secret_is_ever_printed(secret):
    plain = URL.create("postgresql", "u", host="localhost", database="db")
    for url in (plain.set(password=secret), plain.update_query_dict({"password": secret, "sslpassword": secret})):
        parsed = parse_url(url)
        shown = [printable(parsed), repr(split_secrets(parsed)[0])]
        assert not any(secret in text or "%3C" in text for text in shown)
        assert parsed.password == secret


@given(st.text())
def test_any_text_is_a_url_or_refused(text):
    try:
        url = parse_url(text)
    except ConfigurationError:
        return
    assert parse_url(url) == url

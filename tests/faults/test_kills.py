"""Processes killed at any moment of saves: nothing is torn, nothing that was acknowledged is lost."""

from __future__ import annotations

import random
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import select as sql_select

from arc_halo.database import connect
from arc_halo.database.embedded import EmbeddedServer
from arc_halo.registry import iter_tensors
from arc_halo.schema import Model
from arc_halo.store.verify import verify_database
from tests.fixtures import saving_process
from tests.fixtures.embedded import kill
from tests.fixtures.long import how_many

client_kills = how_many("--kills", short=4)
server_kills = how_many("--kills", short=2)
SIZES = pytest.mark.parametrize("small_nbytes", [1 << 25, -1], ids=["one transaction", "uploaded"])


class Saving:
    """A process that saves, and what it has acknowledged."""

    def __init__(self, url, number, small_nbytes):
        self.number = number
        self.acknowledged = []
        command = [sys.executable, saving_process.__file__, url.render_as_string(hide_password=False), f"m{number}"]
        command += ["--seed", str(number % 3), "--small-nbytes", str(small_nbytes)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
        self._pending = b""

    def wait_for_one(self):
        while not self.acknowledged:
            assert self.process.poll() is None
            self.read(1.0)

    def read(self, seconds=0.0):
        while select.select([self.process.stdout], [], [], seconds)[0]:
            data = self.process.stdout.read1(65536)
            if not data:
                return
            self._pending += data
            *lines, self._pending = self._pending.split(b"\n")
            self.acknowledged += [tuple(map(int, line.split())) for line in lines]
            seconds = 0.0

    def end(self):
        self.process.kill()
        self.process.wait()
        self.read()
        self.process.stdout.close()


ROOT = Path(__file__).parents[2]


def check(url, savings):
    """Every acknowledged version is there; every version that is there is what its step was, to the bit."""
    with connect(url) as database, database.session() as session:
        assert verify_database(database).faults == []
        stored = {(name, version) for name, version in session.execute(sql_select(Model.name, Model.version))}
        for saving in savings:
            name = f"m{saving.number}"
            versions = {int(version) for each, version in stored if each == name}
            assert {version for _, version in saving.acknowledged} <= versions
            assert max(versions) <= len(saving.acknowledged) + 1  # at most the one that it was killed in
            check_content(session, saving, max(versions))


def check_content(session, saving, version):
    expected = saving_process.tensors(saving.number % 3, version)
    stored = dict(iter_tensors(session, f"m{saving.number}@{version}"))
    assert stored.keys() == expected.keys()
    assert all(stored[name].tobytes() == array.tobytes() for name, array in expected.items())


def kill_clients(url, kills, small_nbytes):
    choose = random.Random(kills)
    savings = []
    for number in range(kills):
        saving = Saving(url, number, small_nbytes)
        savings.append(saving)
        saving.wait_for_one()
        time.sleep(choose.uniform(0, 0.3))
        saving.end()
    check(url, savings)


@SIZES
def test_killed_clients(migrated_url, client_kills, small_nbytes):
    kill_clients(migrated_url, client_kills, small_nbytes)


@pytest.mark.long
@pytest.mark.timeout(7200)
@SIZES
def test_many_killed_clients(migrated_url, client_kills, small_nbytes):
    kill_clients(migrated_url, client_kills, small_nbytes)


def kill_servers(home, kills):
    """With the settings users get, but for a writer of the log that sleeps: what nobody waited for is lost."""
    choose = random.Random(kills)
    server = EmbeddedServer(home, {"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"})
    savings = []
    try:
        connect(server.acquire(), migrate=True).close()
        for number in range(kills):
            saving = Saving(server.url(), number, -1 if number % 2 else 1 << 25)
            savings.append(saving)
            saving.wait_for_one()
            time.sleep(choose.uniform(0, 0.3))
            kill(server)
            saving.end()
            server.acquire()
        check(server.url(), savings)
    finally:
        server.close()


def test_killed_servers(home, server_kills):
    kill_servers(home, server_kills)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_killed_servers(home, server_kills):
    kill_servers(home, server_kills)

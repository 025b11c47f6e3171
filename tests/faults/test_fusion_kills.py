"""Processes and servers killed while a reactor answers: an operation is there with all of it, or not at all."""

import random
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from sqlalchemy import select, text

from arc_halo.database import connect
from arc_halo.database.embedded import EmbeddedServer
from arc_halo.fusion.reactor import Reactor
from arc_halo.fusion.replay import replay
from arc_halo.schema import FusionOperation
from tests.fixtures import fusing_process
from tests.fixtures.embedded import kill
from tests.fixtures.long import how_many
from tests.fusion.reactors import store_reactor

ROOT = Path(__file__).parents[2]
REPLAYS = 8
client_kills = how_many("--kills", short=3)
server_kills = how_many("--kills", short=2)
# With three members, each asked once, and a reference: three calls, the first of them right, and one row of figures.
HALF = text("""
SELECT count(*)
  FROM arc_halo.fusion_operations AS o
 WHERE o.status <> 'completed' OR o.output IS NULL OR o.quality <> 1
    OR (SELECT array_agg(c.position ORDER BY c.position)
          FROM arc_halo.fusion_operation_members AS c WHERE c.operation_id = o.id) IS DISTINCT FROM ARRAY[0, 1, 2]
    OR (SELECT count(*) FROM arc_halo.fusion_operation_members AS c
         WHERE c.operation_id = o.id AND c.quality IS DISTINCT FROM CASE WHEN c.status = 'answered' THEN 1 END) > 0
    OR (SELECT array_agg(m.quality) FROM arc_halo.reactor_metrics AS m
         WHERE m.operation_id = o.id) IS DISTINCT FROM ARRAY[o.quality]
""")
ORPHANS = text("""
SELECT (SELECT count(*) FROM arc_halo.fusion_operation_members AS c
         WHERE NOT EXISTS (SELECT FROM arc_halo.fusion_operations AS o WHERE o.id = c.operation_id))
     + (SELECT count(*) FROM arc_halo.reactor_metrics AS m
         WHERE NOT EXISTS (SELECT FROM arc_halo.fusion_operations AS o WHERE o.id = m.operation_id))
""")


def start(url, seed):
    command = [sys.executable, fusing_process.__file__, url.render_as_string(hide_password=False), "--seed", str(seed)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)


def stored_by(process):
    """The operations that it says are stored."""
    process.kill()
    return {uuid.UUID(line) for line in process.communicate()[0].split("\n")[:-1]}


def check(url, acknowledged):
    """All that was acknowledged is there, nothing is half there, and what came last comes out the same again."""
    with connect(url) as database:
        with database.session() as session:
            newest = select(FusionOperation.id).where(FusionOperation.replay_of.is_(None))
            ids = session.scalars(newest.order_by(FusionOperation.started_at.desc())).all()
            assert acknowledged <= set(ids)
            assert session.scalar(HALF) == 0
            assert session.scalar(ORPHANS) == 0
        reactor = Reactor(database, fusing_process.REACTOR, fusing_process.MEMBERS)
        for each in ids[:REPLAYS]:
            again = replay(reactor, each)
            assert again.is_equal, again.differences
            assert again.changes == ()


def prepare(url, *, migrate=None):
    with connect(url, migrate=migrate) as database:
        store_reactor(database, {name: {} for name in fusing_process.MEMBERS})


def kill_clients(url, kills):
    prepare(url)
    choose, acknowledged = random.Random(kills), set()
    for seed in range(kills):
        process = start(url, seed)
        first = process.stdout.readline()
        time.sleep(choose.uniform(0, 0.3))
        acknowledged |= stored_by(process) | {uuid.UUID(first.strip())}
        check(url, acknowledged)


def test_killed_processes_leave_whole_operations(migrated_url, client_kills):
    kill_clients(migrated_url, client_kills)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_killed_processes(migrated_url, client_kills):
    kill_clients(migrated_url, client_kills)


def kill_servers(home, kills):
    choose, acknowledged = random.Random(kills), set()
    server = EmbeddedServer(home)
    try:
        prepare(server.acquire(), migrate=True)
        for seed in range(kills):
            process = start(server.url(), seed)
            first = process.stdout.readline()
            time.sleep(choose.uniform(0, 0.3))
            kill(server)
            acknowledged |= stored_by(process) | {uuid.UUID(first.strip())}
            check(server.acquire(), acknowledged)
    finally:
        server.close()


def test_a_killed_server_has_whole_operations(home, server_kills):
    kill_servers(home, server_kills)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_killed_servers(home, server_kills):
    kill_servers(home, server_kills)

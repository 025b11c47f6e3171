"""Processes and servers killed while keys and values are stored: whole prefixes or nothing, never half."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from arc_halo.database import connect
from arc_halo.database.embedded import EmbeddedServer
from arc_halo.inference.kv import KVCache
from arc_halo.inference.kv.keeping import set_quota
from arc_halo.inference.sweeping import Swept, sweep_caches
from arc_halo.schema import CacheAudit, KVCacheBlock
from tests.fixtures import caching_process
from tests.fixtures.embedded import kill
from tests.fixtures.long import how_many
from tests.inference.kv import LAYOUT, make_layers, make_namespace, same

ROOT = Path(__file__).parents[2]
client_kills = how_many("--kills", short=3)
server_kills = how_many("--kills", short=2)
INCOMPLETE = """
    SELECT count(*) FROM arc_halo.kv_cache AS b
     WHERE (SELECT count(*) FROM (SELECT 1 FROM arc_halo.kv_cache_payloads AS p WHERE p.block_hash = b.block_hash
                                  UNION ALL
                                  SELECT 1 FROM arc_halo.kv_cache_unlogged_payloads AS p
                                   WHERE p.block_hash = b.block_hash) AS payloads) <> 2
"""


def start(url, *options):
    command = [sys.executable, caching_process.__file__, url.render_as_string(hide_password=False), *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def stored_by(process):
    """The prompts that it says are committed."""
    process.kill()
    return [int(line) for line in process.communicate()[0].split("\n")[:-1]]


def check(url, numbers, *, may_be_lost=False):
    """What was acknowledged is there to the last token and to the bit."""
    with connect(url) as database, KVCache(database, make_namespace(), LAYOUT) as cache:
        for number in numbers:
            tokens = caching_process.prompt(number)
            layers, hit = cache.restore(tokens)
            assert same(layers, make_layers(tokens[:hit]))
            assert may_be_lost or hit == len(tokens)
        with database.session() as session:
            if not may_be_lost:
                assert session.scalar(text(INCOMPLETE)) == 0
                assert session.scalar(select(func.count()).select_from(CacheAudit)) == 0


def kill_clients(url, kills):
    choose = random.Random(kills)
    for seed in range(kills):
        process = start(url, "store", "--seed", seed)
        process.stdout.readline()
        time.sleep(choose.uniform(0, 0.3))
        check(url, stored_by(process))


def test_killed_processes_leave_whole_prefixes(migrated_url, client_kills):
    kill_clients(migrated_url, client_kills)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_killed_processes(migrated_url, client_kills):
    kill_clients(migrated_url, client_kills)


def kill_servers(home, kills, *options):
    choose = random.Random(kills)
    server = EmbeddedServer(home)
    may_be_lost = "--unlogged" in options
    try:
        connect(server.acquire(), migrate=True).close()
        for seed in range(kills):
            process = start(server.url(), "store", "--seed", seed, *options)
            process.stdout.readline()
            time.sleep(choose.uniform(0, 0.3))
            kill(server)
            numbers = stored_by(process)
            check(server.acquire(), numbers, may_be_lost=may_be_lost)
            check(server.url(), numbers, may_be_lost=may_be_lost)  # by now what was lost can be stored anew
    finally:
        server.close()


TABLES = pytest.mark.parametrize("options", [(), ("--unlogged",)], ids=["logged", "unlogged"])


@TABLES
def test_a_killed_server_has_whole_prefixes_or_misses(home, server_kills, options):
    kill_servers(home, server_kills, *options)


@pytest.mark.long
@pytest.mark.timeout(7200)
@TABLES
def test_many_killed_servers(home, server_kills, options):
    kill_servers(home, server_kills, *options)


def test_sixteen_processes_asking_one_prefix_compute_it_once(migrated_url):
    processes = [start(migrated_url, "ask") for _ in range(16)]
    answers = [process.communicate(timeout=240)[0] for process in processes]
    assert sorted(answers) == ['{"calls": 0}\n'] * 15 + ['{"calls": 1}\n']
    with connect(migrated_url) as database, database.session() as session:
        assert session.scalar(select(func.count()).select_from(KVCacheBlock)) == 3
        assert session.scalar(text("SELECT count(*) FROM arc_halo.kv_cache_payloads")) == 6


seconds = how_many("--seconds", short=3)


def sweep_beside_readers(url, seconds):
    """Everything expires at once, a quota evicts, and readers that also store are never given half of anything."""
    options = ("--seconds", seconds, "--ttl", 0.3)
    readers = [start(url, "read", "--seed", seed, *options, *(["--unlogged"] * (seed % 2))) for seed in range(4)]
    swept = Swept()
    with connect(url) as database:
        with database.session() as session, session.begin():
            set_quota(session, "kv", 20_000)
        while any(reader.poll() is None for reader in readers):
            result = sweep_caches(database, batch=5)
            swept.kv_cache_count += result.kv_cache_count
            swept.evicted_count += result.evicted_count
        with database.session() as session:
            assert session.scalar(text(INCOMPLETE)) == 0
            assert session.scalar(select(func.coalesce(func.sum(KVCacheBlock.stored_nbytes), 0))) <= 20_000
            reasons = set(session.scalars(select(CacheAudit.reason)))
    assert reasons <= {"missing_payload"}  # found, and swept before it was read
    answers = [json.loads(reader.communicate()[0]) for reader in readers]
    assert all(reader.returncode == 0 for reader in readers)
    assert sum(answer["full"] for answer in answers) > 0
    assert swept.kv_cache_count > 0


def test_a_sweep_beside_readers(migrated_url, seconds):
    sweep_beside_readers(migrated_url, seconds)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_long_sweep_beside_readers(migrated_url, seconds):
    sweep_beside_readers(migrated_url, seconds)

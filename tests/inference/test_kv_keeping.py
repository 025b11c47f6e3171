"""What is kept: times to live, pins, quotas, counts, and the cheaper of reading and computing."""

import datetime as dt
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sqlalchemy import func, insert, select, text, update

from arc_halo.errors import CacheError
from arc_halo.inference.activations import input_digest, put_activations
from arc_halo.inference.kv import BreakEven, KVCache, counting, find_prefix, quotas, store_prefix
from arc_halo.inference.kv.costs import RECHECK_EVERY, Costs
from arc_halo.inference.kv.keeping import clear_caches, pin_prefix, set_quota
from arc_halo.inference.responses import put_response
from arc_halo.inference.sweeping import Sweeper, sweep_caches
from arc_halo.schema import (
    CacheAudit,
    CachedActivation,
    CachedResponse,
    CacheLease,
    CacheNamespace,
    CacheStatistics,
    CacheStatus,
    KVCacheBlock,
    KVCacheStatistics,
)
from arc_halo.schema.columns import uuid7
from tests.inference.kv import BLOCK, LAYOUT, make_layers, make_namespace

TEXT = list(range(100, 110))
BLOCK_NBYTES = BLOCK * LAYOUT.token_nbytes


def store(session, tokens, **options):
    return store_prefix(session, make_namespace(), tokens, make_layers(tokens), **options)


def hit(session, tokens=TEXT):
    return find_prefix(session, make_namespace(), tokens).token_count


def age(session, seconds=3600):
    session.execute(update(KVCacheBlock).values(expires_at=KVCacheBlock.expires_at - dt.timedelta(seconds=seconds)))


@pytest.mark.parametrize("ttl", [10, 10.5, dt.timedelta(seconds=10)])
def test_what_has_expired_is_a_miss_before_it_is_swept(session, ttl):
    store(session, TEXT, ttl=ttl)
    assert hit(session) == len(TEXT)
    age(session)
    assert hit(session) == 0
    assert session.scalar(select(func.count()).select_from(KVCacheBlock)) == 3


@pytest.mark.parametrize(
    "ttl", [0, -1, float("nan"), float("inf"), dt.timedelta(0), dt.datetime(2030, 1, 1, tzinfo=dt.UTC), "1h", True]
)
def test_times_that_make_no_sense_are_refused(session, ttl):
    with pytest.raises(CacheError, match="ttl"):
        store(session, TEXT, ttl=ttl)


def test_what_stands_before_lives_as_long(session):
    store(session, TEXT[:4], ttl=10)
    store(session, TEXT[:8], ttl=7200)
    age(session)
    assert hit(session) == 8
    store(session, TEXT)  # for ever
    age(session, 999_999)
    assert hit(session) == len(TEXT)


def test_storing_again_lets_it_live_anew(session):
    store(session, TEXT, ttl=10)
    age(session)
    assert store(session, TEXT, ttl=10).new_token_count == 0
    assert hit(session) == len(TEXT)


def test_a_longer_part_of_a_block_does_not_end_the_life_of_the_one_it_begins_with(session):
    store(session, TEXT[:9])
    store(session, TEXT, ttl=10)
    age(session)
    assert hit(session) == 9


@pytest.mark.parametrize("options", [{}, {"ttl": 7200}, {"pinned": True}], ids=str)
def test_what_covers_a_part_of_a_block_lives_as_long(session, options):
    store(session, TEXT, ttl=10)
    store(session, TEXT[:9], **options)
    age(session)
    assert hit(session, TEXT[:9]) == 9


@pytest.mark.parametrize("before", [{}, {"ttl": 7200}], ids=str)
def test_a_pin_leaves_the_time_to_live_longer(session, before):
    store(session, TEXT, **before)
    store(session, TEXT, ttl=10, pinned=True)
    pin_prefix(session, make_namespace(), TEXT, pinned=False)
    age(session)
    assert hit(session) == len(TEXT)


def test_what_is_there_is_pinned_where_there_is_no_room_for_more(session):
    store(session, TEXT[:8], ttl=10)
    set_quota(session, "kv", BLOCK_NBYTES)
    assert store(session, TEXT[:8], pinned=True).token_count == 8
    assert store(session, [*TEXT[:8], 1], pinned=True).token_count == 8
    age(session)
    assert hit(session) == 8


def test_a_pinned_prefix_does_not_expire(session):
    store(session, TEXT, ttl=10)
    assert pin_prefix(session, make_namespace(), TEXT[:6]) == 6
    age(session)
    assert hit(session) == 8  # to the end of the block
    pin_prefix(session, make_namespace(), TEXT[:8], pinned=False)
    assert hit(session) == 0


def test_unpinning_leaves_what_another_pin_stands_behind(session):
    store(session, TEXT, ttl=10, pinned=True)
    pin_prefix(session, make_namespace(), TEXT[:4], pinned=False)
    age(session)
    assert hit(session) == len(TEXT)


def test_a_quota_evicts_what_was_used_longest_ago_tails_first(session):
    set_quota(session, "kv", 5 * BLOCK_NBYTES)
    for start in (0, 1000, 2000):
        store(session, range(start, start + 8))
        session.execute(update(KVCacheBlock).values(created_at=KVCacheBlock.created_at - dt.timedelta(hours=1)))
    # Six blocks, five of which fit: the oldest chain lost its tail, and keeps its head.
    assert [hit(session, range(start, start + 8)) for start in (0, 1000, 2000)] == [4, 8, 8]
    store(session, range(3000, 3004))
    assert [hit(session, range(start, start + 8)) for start in (0, 1000, 2000)] == [0, 8, 8]


def grow_old(session, hours=1):
    session.execute(update(KVCacheBlock).values(created_at=KVCacheBlock.created_at - dt.timedelta(hours=hours)))


def use(session, tokens, *, hours_ago=0):
    """Count a hit of the blocks that hold these tokens, as the thread does."""
    for block in find_prefix(session, make_namespace(), tokens).blocks:
        key = {
            "tenant_id": 0,
            "namespace_id": session.scalar(select(CacheNamespace.id)),
            "block_hash": block.block_hash,
        }
        hit_at = func.now() - dt.timedelta(hours=hours_ago)
        session.merge(KVCacheStatistics(**key, hit_count=1, last_hit_at=session.scalar(select(hit_at))))
        session.flush()


def test_a_cold_chain_goes_as_a_whole_before_a_warm_one_loses_its_tail(session):
    cold, warm = range(40), range(1000, 1008)
    store(session, cold)
    store(session, warm)
    grow_old(session)
    use(session, warm)
    set_quota(session, "kv", 12 * BLOCK_NBYTES)
    assert store(session, range(2000, 2032)).evicted_count == 8
    assert [hit(session, each) for each in (cold, warm)] == [8, 8]
    assert store(session, range(3000, 3008)).evicted_count == 2
    assert [hit(session, each) for each in (cold, warm)] == [0, 8]


def test_a_beginning_was_used_when_what_stands_behind_it_was(session):
    store(session, range(8))
    store(session, [0, 1, 2, 3, 9, 9, 9, 9])
    store(session, range(1000, 1008))
    grow_old(session)
    use(session, range(1000, 1008), hours_ago=0.5)
    tail = find_prefix(session, make_namespace(), range(8)).blocks[-1]
    key = {"tenant_id": 0, "namespace_id": session.scalar(select(CacheNamespace.id)), "block_hash": tail.block_hash}
    session.add(KVCacheStatistics(**key, hit_count=1, last_hit_at=session.scalar(select(func.now()))))
    session.flush()
    set_quota(session, "kv", 5 * BLOCK_NBYTES)
    store(session, range(2000, 2012))  # three blocks: of five two must stay
    assert hit(session, [0, 1, 2, 3, 9, 9, 9, 9]) == 4
    assert [hit(session, range(start, start + 8)) for start in (0, 1000)] == [8, 0]


def test_nothing_goes_where_it_would_not_be_enough(session):
    store(session, TEXT[:8], pinned=True)
    store(session, range(8))
    set_quota(session, "kv", 4 * BLOCK_NBYTES)
    stored = store(session, range(1000, 1012))
    assert (stored.token_count, stored.evicted_count) == (0, 0)
    assert hit(session, range(8)) == 8
    assert store(session, range(1000, 1008)).evicted_count == 2


def test_what_a_pinned_block_stands_behind_stays(session):
    store(session, TEXT)
    tail = find_prefix(session, make_namespace(), TEXT).blocks[-1]
    session.execute(update(KVCacheBlock).where(KVCacheBlock.block_hash == tail.block_hash).values(is_pinned=True))
    set_quota(session, "kv", 3 * BLOCK_NBYTES)
    assert store(session, range(4)).token_count == 0
    assert hit(session) == len(TEXT)


def test_what_somebody_uses_is_passed_over_with_what_it_stands_behind(database):
    with database.session() as session, session.begin():
        store(session, range(8))
        store(session, range(1000, 1008))
        grow_old(session)
        use(session, range(1000, 1008))
        set_quota(session, "kv", 4 * BLOCK_NBYTES)
    with database.session() as reader, database.session() as session:
        tail = find_prefix(reader, make_namespace(), range(8)).blocks[-1]
        of_tail = select(KVCacheBlock.position).where(KVCacheBlock.block_hash == tail.block_hash)
        reader.execute(of_tail.with_for_update(read=True, key_share=True))
        assert store(session, range(2000, 2004)).evicted_count == 1
        assert [hit(session, range(start, start + 8)) for start in (0, 1000)] == [8, 4]
        assert store(session, range(2000, 2016)).evicted_count == 0
        assert [hit(session, range(start, start + 8)) for start in (0, 1000)] == [8, 4]


def test_a_pin_that_comes_while_room_is_made_is_kept(database, monkeypatch):
    with database.session() as session, session.begin():
        store(session, range(8))
        set_quota(session, "kv", 2 * BLOCK_NBYTES)
    # The lookup of what may go ends with a function that lets another session pin it then.
    with database.session() as session, session.begin():
        namespace = make_namespace()
        statement = quotas._EVICT.replace(
            "FROM ranked AS r WHERE", "FROM ranked AS r WHERE pg_sleep(1) IS NOT NULL AND"
        )
        monkeypatch.setattr(quotas, "_EVICT", statement)
        with ThreadPoolExecutor(1) as pool:
            evicting = pool.submit(database.transaction, lambda other: store(other, range(1000, 1004)))
            time.sleep(0.5)
            with database.session() as pinning, pinning.begin():
                pin_prefix(pinning, namespace, range(8))
            assert evicting.result().token_count == 0
        assert hit(session, range(8)) == 8


def test_what_is_larger_than_the_quota_is_not_stored(session):
    store(session, TEXT[:4])
    set_quota(session, "kv", 2 * BLOCK_NBYTES)
    stored = store(session, TEXT)
    assert (stored.token_count, stored.new_token_count) == (4, 0)
    assert hit(session) == 4


def test_pinned_blocks_make_no_room(session):
    set_quota(session, "kv", 2 * BLOCK_NBYTES)
    store(session, TEXT[:8], pinned=True)
    assert store(session, range(8)).token_count == 0
    set_quota(session, "kv", None)
    assert store(session, range(8)).token_count == 8


@pytest.mark.parametrize(("kind", "nbytes"), [("files", 1), ("kv", -1)])
def test_quotas_that_make_no_sense_are_refused(session, kind, nbytes):
    with pytest.raises(CacheError):
        set_quota(session, kind, nbytes)


def test_tenants_have_quotas_of_their_own(session):
    set_quota(session, "kv", 0, tenant_id=1)
    other = make_namespace(tenant_id=1)
    assert store_prefix(session, other, TEXT, make_layers(TEXT)).token_count == 0
    assert store(session, TEXT).token_count == len(TEXT)


def test_a_sweep_takes_what_expired_and_what_is_beyond_a_quota(database):
    with database.session() as session, session.begin():
        store(session, range(8), ttl=10)
        age(session)
        store(session, TEXT)
        set_quota(session, "kv", 2 * BLOCK_NBYTES)
    swept = sweep_caches(database, batch=1)
    assert (swept.kv_cache_count, swept.evicted_count, swept.count) == (2, 1, 3)
    with database.session() as session:
        assert hit(session) == 8
    with pytest.raises(CacheError):
        sweep_caches(database, batch=0)


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_sweeper_sweeps_now_and_then(database):
    with database.session() as session, session.begin():
        store(session, TEXT, ttl=10)
        age(session)
    with Sweeper(database, every=0.01), database.session() as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        wait_until(lambda: session.scalar(select(func.count()).select_from(KVCacheBlock)) == 0)
    with pytest.raises(CacheError):
        Sweeper(database, every=0)


def test_clearing_takes_one_cache_or_those_of_some_weights(session):
    store(session, TEXT)
    store_prefix(session, make_namespace(weights_digest=bytes(32)), TEXT, make_layers(TEXT))
    assert clear_caches(session, kind="activation") == 0
    assert clear_caches(session, weights_digest=bytes(32)) == 1
    assert hit(session) == len(TEXT)
    assert clear_caches(session) == 1
    assert session.scalar(select(func.count()).select_from(CacheNamespace)) == 0
    assert session.scalar(select(func.count()).select_from(CachedActivation)) == 0


def test_hits_are_counted(database):
    with KVCache(database, make_namespace(), LAYOUT) as cache:
        cache.store(TEXT, make_layers(TEXT))
        cache.restore(TEXT[:6])
        cache.restore(TEXT)
        cache.restore([1, 2, 3])
        cache.note_computed(100, 0.5)
    with database.session() as session:
        counts = session.scalars(select(CacheStatistics)).one()
        assert (counts.lookup_count, counts.hit_count) == (3, 2)
        assert (counts.asked_token_count, counts.hit_token_count) == (19, 16)
        assert counts.read_nbytes == 16 * LAYOUT.token_nbytes
        hits = select(KVCacheBlock.position, KVCacheStatistics.hit_count).join(
            KVCacheStatistics, KVCacheStatistics.block_hash == KVCacheBlock.block_hash
        )
        assert session.execute(hits.order_by(KVCacheBlock.position)).all() == [(0, 2), (1, 2), (2, 1)]
        status = session.scalars(select(CacheStatus)).one()
        assert (status.entry_count, status.models, status.is_servable) == (3, [], True)
        assert status.stored_nbytes == 10 * LAYOUT.token_nbytes
        assert status.computed_tokens_per_second == 200


def statistics(database):
    with database.session() as session:
        return session.execute(
            select(CacheStatistics.lookup_count, CacheStatistics.asked_token_count, CacheStatistics.hit_token_count)
        ).all()


@pytest.mark.parametrize("flushes", [False, True])
def test_misses_before_anything_is_stored_are_counted(database, flushes):
    with KVCache(database, make_namespace(), LAYOUT) as cache:
        cache.lookup(TEXT)
        cache.note_computed(len(TEXT), 0.5)
        if flushes:
            cache.flush()
        assert statistics(database) == []
        cache.store(TEXT, make_layers(TEXT))
        for _ in range(2):
            cache.lookup(TEXT)
        cache.flush()
        assert statistics(database) == [(3, 30, 20)]
        assert cache.lookup([1, 2]).token_count == 0
    assert statistics(database) == [(4, 32, 20)]
    with database.session() as session:
        assert session.scalar(select(CacheStatistics.computed_token_count)) == len(TEXT)


def test_what_is_kept_for_a_row_is_written_in_the_background(database, monkeypatch, count_statements):
    monkeypatch.setattr(counting, "FLUSH_SECONDS", 0.01)
    with KVCache(database, make_namespace(), LAYOUT) as cache:
        cache.lookup(TEXT)
        wait_until(lambda: not cache._counter._is_due)
        cache.flush()
        with count_statements(database.engine) as statements:
            time.sleep(0.1)
        assert statements == []  # that there is no row yet is asked once
        cache.store(TEXT, make_layers(TEXT))
        wait_until(lambda: statistics(database) == [(1, 10, 0)])


def test_threads_lose_no_misses(database):
    with KVCache(database, make_namespace(), LAYOUT) as cache, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: (cache.lookup(TEXT), number % 5 or cache.flush()), range(100)))
        cache.store(TEXT, make_layers(TEXT))
    assert statistics(database) == [(100, 1000, 0)]


def test_counts_of_what_is_gone_are_dropped(database, caplog):
    with KVCache(database, make_namespace(), LAYOUT) as cache:
        cache.store(TEXT, make_layers(TEXT))
        cache.lookup(TEXT)
        with database.session() as session, session.begin():
            clear_caches(session)
        cache.flush()
    with database.session() as session:
        assert session.scalar(text("SELECT count(*) FROM arc_halo.cache_statistics")) == 0
    assert not caplog.records


def test_the_break_even_is_where_reading_takes_as_long_as_computing():
    assert BreakEven(1000).reads
    assert BreakEven(1000, 2e6, 1000).nbytes_per_second == 1e6
    assert BreakEven(1000, 2e6, 1000).reads
    assert not BreakEven(1000, 0.5e6, 1000).reads
    assert BreakEven(1000, 2e6, 1000).seconds_saved(1000) == pytest.approx(0.5)
    assert "read" in str(BreakEven(1000, 2e6, 1000))
    assert "not measured" in str(BreakEven(1000))


def test_where_computing_is_faster_a_hit_is_read_only_to_measure_again():
    costs = Costs(BreakEven(1000, 1e3, 1e6))
    assert sum(costs.reads() for _ in range(3 * RECHECK_EVERY)) == 3
    for _ in range(40):
        costs.note_read(1_000_000_000, 0.001)
    assert costs.reads()


def test_what_computes_faster_than_it_reads_is_computed(database):
    calls = []

    def compute(_layers, hit):
        calls.append(hit)
        return make_layers(TEXT)

    with KVCache(database, make_namespace(), LAYOUT) as cache:
        cache._costs = Costs(BreakEven(LAYOUT.token_nbytes, 1.0, 1e9))
        assert [cache.get_or_compute(TEXT, compute)[1] for _ in range(3)] == [0, 0, 0]
        assert calls == [0, 0, 0]
        cache._costs = Costs(BreakEven(LAYOUT.token_nbytes))
        assert cache.get_or_compute(TEXT, compute)[1] == len(TEXT)
    assert calls == [0, 0, 0]


def test_what_is_missing_is_computed_from_what_is_there(database):
    def compute(layers, hit):
        assert hit == 8
        assert layers[0][0].shape[1] == 8
        return make_layers(TEXT)

    with KVCache(database, make_namespace(), LAYOUT) as cache:
        cache.store(TEXT[:8], make_layers(TEXT[:8]))
        assert cache.get_or_compute(TEXT, compute)[1] == 8
        assert cache.lookup(TEXT).token_count == len(TEXT)


def test_fifty_writers_of_one_prefix_store_it_once(database):
    with KVCache(database, make_namespace(), LAYOUT) as cache, ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda _: cache.store(TEXT, make_layers(TEXT)), range(50)))
    assert {each.token_count for each in stored} == {len(TEXT)}
    assert sum(each.new_token_count for each in stored) == len(TEXT)


def test_a_sweep_keeps_every_cache_to_its_quota(database):
    activations = make_namespace(kind="activation", block_token_count=None)
    responses = make_namespace(kind="response", block_token_count=None)
    with database.session() as session, session.begin():
        for number in range(3):
            key = input_digest({"x": np.array([number])})
            put_activations(session, activations, key, {"layer": np.full(8, number, np.float32)})
            put_response(session, responses, f"question {number}", {"temperature": 0}, "answer")
        set_quota(session, "activation", 64)
        set_quota(session, "response", 0)
    assert sweep_caches(database).evicted_count == 1 + 3
    with database.session() as session:
        assert session.scalar(select(func.count()).select_from(CachedActivation)) == 2
        assert session.scalar(select(func.count()).select_from(CachedResponse)) == 0


def test_a_sweep_forgets_old_audits_and_leases_that_nobody_holds(database):
    rows = [{"tenant_id": 0, "kind": "kv", "reason": "bad_payload"}] * 2
    lease = {"tenant_id": 0, "holder_id": uuid7(), "description": "host 1"}
    with database.session() as session, session.begin():
        session.execute(insert(CacheAudit), rows)
        session.execute(update(CacheAudit).values(occurred_at=func.now() - text("interval '31 days'")))
        session.execute(insert(CacheAudit), rows)
        for number, hours in enumerate((2, 0)):
            expires_at = func.now() - text(f"interval '{hours} hours'")
            session.execute(insert(CacheLease).values(key_digest=bytes([number] * 32), expires_at=expires_at, **lease))
    sweep_caches(database, batch=1)
    with database.session() as session:
        assert session.scalar(select(func.count()).select_from(CacheAudit)) == 2
        assert session.scalars(select(CacheLease.key_digest)).all() == [bytes([1] * 32)]


def test_a_forked_child_counts_what_is_its_own(database):
    with KVCache(database, make_namespace(), LAYOUT) as cache:
        cache.store(TEXT, make_layers(TEXT))
        cache.lookup(TEXT)
        cache._counter._lock.acquire()  # as if another thread were just counting
        child = os.fork()
        if child == 0:
            kept = cache._counter._pending.counts.lookup_count
            held = cache._counter._lock.locked() or kept or cache._counter._thread is not None
            os._exit(1 if held else 0)
        cache._counter._lock.release()
        assert os.waitpid(child, 0)[1] == 0

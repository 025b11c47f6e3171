"""The cache for applications reads or computes, whichever is cheaper, and never fails where computing would not."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from blake3 import blake3
from sqlalchemy import select, text

from arc_halo.errors import CacheError, DatabaseUnavailable
from arc_halo.inference.activations import ActivationCache, get_activations, input_digest
from arc_halo.inference.activations.measuring import Habit, Said
from arc_halo.inference.namespaces import Namespace
from arc_halo.schema import CacheAudit, CachedActivation, CacheQuota, CacheStatistics
from tests.fixtures.tensors import same, weights

NAMESPACE = Namespace("activation", blake3(b"weights").digest(), blake3(b"config").digest(), "F32", "batch,token,width")
INPUTS = {"input_ids": np.arange(6)}
POINTS = ["layers.1", "layers.0"]
OUTPUTS = {name: weights((6, 8), seed) for seed, name in enumerate(POINTS)}


class Model:
    """Counts its computations, and says of each how many transactions were open."""

    def __init__(self, database=None):
        self.database = database
        self.calls = 0
        self.lock = threading.Lock()
        self.checked_out = []

    def __call__(self):
        with self.lock:
            self.calls += 1
            if self.database is not None:
                self.checked_out.append(self.database.engine.pool.checkedout())
        return OUTPUTS | {"more": np.zeros(3)}


@pytest.fixture
def cache(database):
    with ActivationCache(database, NAMESPACE, flush_seconds=600) as cache:
        yield cache


def measured(cache, read_ms, recompute_ms):
    """Say what reading and computing took."""
    cache.flush()
    change = text("UPDATE arc_halo.activation_cache SET read_ms = :read_ms, recompute_ms = :recompute_ms")
    values = {"read_ms": read_ms, "recompute_ms": recompute_ms}
    cache._database.transaction(lambda session: session.execute(change, values) and None)


def rows(cache, entity=CachedActivation):
    cache.flush()
    with cache._database.session() as session:
        return session.scalars(select(entity)).all()


def test_what_was_computed_once_is_read_from_then_on(database, cache):
    model = Model(database)
    for _ in range(3):
        found = cache.get_or_compute(INPUTS, POINTS, model)
        measured(cache, None, 1e9)
        assert list(found) == POINTS
        assert all(same(found[name], OUTPUTS[name]) for name in POINTS)
    assert model.calls == 1
    assert model.checked_out == [0]


def test_hits_and_times_are_written_beside(cache):
    for _ in range(3):
        cache.get_or_compute(INPUTS, POINTS, lambda: OUTPUTS)
        measured(cache, None, 1e9)
    assert {row.hit_count for row in rows(cache)} == {2}
    cache.get(INPUTS, POINTS)
    assert all(row.hit_count == 3 and row.last_hit_at >= row.created_at and row.read_ms > 0 for row in rows(cache))
    (statistics,) = rows(cache, CacheStatistics)
    assert (statistics.lookup_count, statistics.hit_count) == (4, 3)
    assert statistics.read_nbytes == 3 * 2 * 192


@pytest.mark.parametrize("flushes", [False, True])
def test_misses_before_anything_is_stored_are_counted(cache, flushes):
    for _ in range(2):
        assert cache.get(INPUTS, POINTS) is None
        if flushes:
            assert rows(cache, CacheStatistics) == []
    cache.put(INPUTS, OUTPUTS)
    cache.get(INPUTS, POINTS)
    (statistics,) = rows(cache, CacheStatistics)
    assert (statistics.lookup_count, statistics.hit_count) == (3, 1)


def test_hits_are_written_in_the_background(database):
    with ActivationCache(database, NAMESPACE, flush_seconds=0.01) as cache:
        cache.put(INPUTS, OUTPUTS)
        cache.get(INPUTS, POINTS)
        cache._measurements._timer.join()
        with database.session() as session:
            assert session.scalars(select(CachedActivation.hit_count)).all() == [1, 1]


def test_what_is_dearer_to_read_is_computed(cache):
    model = Model()
    cache.get_or_compute(INPUTS, POINTS, model)
    measured(cache, read_ms=1e6, recompute_ms=1.0)
    for _ in range(5):
        cache.get_or_compute(INPUTS, POINTS, model)
    assert model.calls == 6
    assert {row.hit_count for row in rows(cache)} == {0}


def test_the_dearer_way_is_measured_again_for_a_part_of_the_time(cache, monkeypatch):
    model = Model()
    monkeypatch.setattr(Habit, "read", lambda *_: None)
    monkeypatch.setattr(Habit, "computed", lambda *_: None)
    cache.get_or_compute(INPUTS, POINTS, model)
    measured(cache, read_ms=6.0, recompute_ms=10.0)  # reading both takes 12
    cache._measurements.computed = lambda *_: None
    cache._measurements.hit = lambda *_: None
    for _ in range(400):
        cache.get_or_compute(INPUTS, POINTS, model)
    assert model.calls == 1 + 400 - 3


def test_measurements_count_before_they_are_written(cache):
    model = Model()
    cache.get_or_compute(INPUTS, POINTS, model)
    measured(cache, None, 1e-6)
    cache.get_or_compute(INPUTS, POINTS, model)  # read, for the first time
    cache.get_or_compute(INPUTS, POINTS, model)
    assert model.calls == 2


def test_a_part_that_is_missing_is_computed_and_stored(cache):
    cache.put(INPUTS, {"layers.0": OUTPUTS["layers.0"]})
    model = Model()
    cache.get_or_compute(INPUTS, POINTS, model)
    assert (model.calls, len(rows(cache))) == (1, 2)
    assert cache.get(INPUTS, [*POINTS, "more"]) is None


def test_what_is_damaged_is_computed_and_put_right(database, cache):
    cache.put(INPUTS, OUTPUTS, recompute_ms=1e9)
    flip = (
        "UPDATE arc_halo.tensor_data SET payload = set_bit(payload, 77, 1 - get_bit(payload, 77)) WHERE digest = :chunk"
    )
    chunk = {"chunk": blake3(OUTPUTS["layers.0"].tobytes()).digest()}
    database.transaction(lambda session: session.execute(text(flip), chunk) and None)
    model = Model()
    for _ in range(2):
        found = cache.get_or_compute(INPUTS, POINTS, model)
        measured(cache, None, 1e9)
        assert all(same(found[name], OUTPUTS[name]) for name in POINTS)
    assert model.calls == 1
    assert [audit.reason for audit in rows(cache, CacheAudit)] == ["bad_payload"]


def test_an_output_that_is_left_out_is_an_error(cache):
    with pytest.raises(CacheError, match=r"layers\.1"):
        cache.get_or_compute(INPUTS, POINTS, lambda: {"layers.0": OUTPUTS["layers.0"]})
    assert rows(cache) == []


def test_what_computing_raises_is_raised(cache):
    with pytest.raises(ZeroDivisionError):
        cache.get_or_compute(INPUTS, POINTS, lambda: 1 / 0)
    assert rows(cache) == []


@contextmanager
def gone(database):
    """Nobody answers any more."""

    def refuse(*_, **__):
        raise DatabaseUnavailable("gone")

    database.transaction = database.read = refuse
    yield
    del database.transaction, database.read


def test_without_a_database_everything_is_computed(database, cache):
    cache.put(INPUTS, OUTPUTS)
    model = Model()
    with gone(database):
        assert cache.get_or_compute(INPUTS, POINTS, model).keys() == OUTPUTS.keys()
        assert cache.get(INPUTS, POINTS) is None
        cache.flush()
    assert model.calls == 1


def test_what_was_used_last_stays(database, cache):
    quota = CacheQuota(tenant_id=0, kind="activation", max_nbytes=2 << 10)
    database.transaction(lambda session: session.add(quota))
    inputs = [{"n": np.array(number)} for number in range(3)]
    for number in range(2):
        cache.put(inputs[number], {"a": weights((256,), number)})
    assert cache.get(inputs[0], ["a"]) is not None
    cache.put(inputs[2], {"a": weights((256,), 2)})
    assert [cache.get(each, ["a"]) is not None for each in inputs] == [True, False, True]


def test_a_ttl_is_that_of_all_entries(database):
    with ActivationCache(database, NAMESPACE, ttl=60) as cache:
        cache.get_or_compute(INPUTS, POINTS, lambda: OUTPUTS)
        assert all(row.expires_at is not None for row in rows(cache))


@pytest.mark.parametrize("options", [{"ttl": 0}, {"ttl": float("nan")}])
def test_what_makes_no_sense_is_said_at_once(database, options):
    with pytest.raises(CacheError):
        ActivationCache(database, NAMESPACE, **options)
    with pytest.raises(CacheError):
        ActivationCache(database, replace(NAMESPACE, kind="response"))


def test_fifty_callers_at_once_make_one_row_each(database, cache):
    model = Model()
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda _: cache.get_or_compute(INPUTS, POINTS, model), range(50)))
    assert all(same(each[name], OUTPUTS[name]) for each in found for name in POINTS)
    assert len(rows(cache)) == 2
    with database.session() as session:
        assert get_activations(session, NAMESPACE, POINTS, input_digest(INPUTS)) is not None


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_of_fork_does_not_count_its_parents_hits(database, cache):
    cache.put(INPUTS, OUTPUTS)
    cache.get(INPUTS, POINTS)
    child = os.fork()
    if child == 0:
        cache.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert {row.hit_count for row in rows(cache)} == {1}
    assert database.engine.pool.checkedout() == 0


def test_a_slow_first_time_does_not_decide_for_ever():
    habit, slow = Habit(), Said(read_ms=3.0, recompute_ms=4.0)
    assert habit.expect(slow) == (3.0, 4.0)
    for _ in range(3):
        habit.computed(0.001, slow.recompute_ms)
    read_ms, recompute_ms = habit.expect(slow)
    assert 1.0 < recompute_ms < read_ms == 3.0


def test_what_was_never_read_is_taken_to_be_as_the_others():
    habit, unread = Habit(), Said(recompute_ms=1.0)
    for _ in range(4):
        assert habit.expect(unread) is None
        habit.read(0.003)
    read_ms, recompute_ms = habit.expect(unread)
    assert recompute_ms == 1.0 < read_ms == pytest.approx(3)


def test_where_both_are_near_computing_is_tried_first():
    habit = Habit()
    assert habit.is_to_be_tried(3.0, 4.0)
    assert not habit.is_to_be_tried(1.0, 4.0)
    habit.computed(0.001)  # of what was not stored: it says nothing of entries
    assert habit.is_to_be_tried(3.0, 4.0)
    for _ in range(2):
        habit.computed(0.001, 4.0)
    assert not habit.is_to_be_tried(3.0, 4.0)


def test_one_slow_time_decides_nothing():
    habit, entry = Habit(), Said(read_ms=3.0, recompute_ms=1.0)
    habit.computed(0.02, entry.recompute_ms)
    read_ms, recompute_ms = habit.expect(entry)
    assert recompute_ms < read_ms


def test_what_is_regularly_cheaper_to_compute_is_not_even_looked_for(cache, monkeypatch):
    looked = []
    look_up = ActivationCache._look_up

    def noted(self, *rest, **options):
        looked.append(rest)
        return look_up(self, *rest, **options)

    monkeypatch.setattr(ActivationCache, "_look_up", noted)
    model = Model()
    cache.get_or_compute(INPUTS, POINTS, model)
    measured(cache, read_ms=1e6, recompute_ms=1.0)
    for _ in range(30):
        cache.get_or_compute(INPUTS, POINTS, model)
    assert model.calls == 31
    assert len(looked) == 5  # the one that found nothing, and as many as make a habit

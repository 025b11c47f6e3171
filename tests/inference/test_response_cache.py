"""The cache that computes once, keeps, and counts."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import select, text

from arc_halo.errors import CacheError, DatabaseUnavailable
from arc_halo.inference.responses import ResponseCache, counting, keys
from arc_halo.schema import CacheAudit, CachedResponse, CacheLease, CacheStatistics
from tests.fixtures.embedding import EMBEDDER, embed
from tests.inference.test_responses import GREEDY, NAMESPACE, PROMPT
from tests.schema.rows import digest


@pytest.fixture
def cache(database):
    with ResponseCache(database, NAMESPACE) as cache:
        yield cache


@pytest.fixture
def similar_cache(database):
    with ResponseCache(database, NAMESPACE, embed=embed, embedder=EMBEDDER, min_similarity=0.9) as cache:
        yield cache


def rows(database, table):
    with database.session() as session:
        return session.scalars(select(table)).all()


def never():
    raise AssertionError("it is stored")


def test_what_was_computed_is_found(cache):
    assert cache.get_or_compute(PROMPT, GREEDY, lambda: "Paris") == ("Paris", None)
    answer = cache.get_or_compute(PROMPT, GREEDY, never)
    assert answer.response == answer.found.response == cache.get(PROMPT, GREEDY).response == "Paris"
    assert answer.found.compute_seconds >= 0


def test_what_was_put_is_found(cache):
    assert cache.put(PROMPT, GREEDY, "Paris", details={"tokens": 1})
    assert cache.get(PROMPT, GREEDY).details == {"tokens": 1}
    assert cache.get(PROMPT, {}) is None


def test_one_of_many_who_ask_computes(similar_cache):
    calls = []

    def compute():
        calls.append(threading.get_ident())
        time.sleep(0.3)
        return "Paris"

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: similar_cache.get_or_compute(PROMPT, GREEDY, compute), range(16)))
    assert len(calls) == 1
    assert {each.response for each in answers} == {"Paris"}
    assert sum(each.found is None for each in answers) == 1


def test_a_prompt_that_means_the_same_is_answered(similar_cache):
    similar_cache.get_or_compute("please tell me the capital of france", GREEDY, lambda: "Paris")
    answer = similar_cache.get_or_compute("tell me the capital of france", GREEDY, never)
    assert answer.response == "Paris"
    assert 0.9 < answer.found.similarity < 1
    assert similar_cache.get_or_compute("tell me the capital of spain", GREEDY, lambda: "Madrid").found is None


def test_a_prompt_is_embedded_once_and_outside_of_transactions(database):
    prompts = []

    def watched(prompt):
        prompts.append(prompt)
        assert database.engine.pool.checkedout() == 0
        return embed(prompt)

    cache = ResponseCache(database, NAMESPACE, embed=watched, embedder=EMBEDDER)
    cache.get_or_compute(PROMPT, GREEDY, lambda: "Paris")
    cache.get_or_compute(PROMPT, GREEDY, never)
    assert prompts == [PROMPT]


@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"do_sample": True}, {"temperature": 1, "seed": None}])
def test_a_sample_is_not_kept_by_accident(cache, settings):
    with pytest.raises(CacheError, match="sample"):
        cache.get_or_compute(PROMPT, settings, lambda: "Paris")
    assert cache.get_or_compute(PROMPT, settings, lambda: "Paris", allow_sampled=True).found is None
    assert cache.get_or_compute(PROMPT, settings, never, allow_sampled=True).response == "Paris"


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"do_sample": False}, {"temperature": 1, "seed": 0}])
def test_what_is_no_sample_is_kept(cache, settings):
    cache.get_or_compute(PROMPT, settings, lambda: "Paris")
    assert cache.get_or_compute(PROMPT, settings, never).response == "Paris"


def test_what_computes_may_fail(cache, database):
    with pytest.raises(ZeroDivisionError):
        cache.get_or_compute(PROMPT, GREEDY, lambda: 1 / 0)
    assert rows(database, CachedResponse) == rows(database, CacheLease) == []


@pytest.mark.parametrize("prompt", ["nul \0", "half \ud800", None])
def test_a_prompt_that_cannot_be_stored_is_refused_before_it_is_computed(cache, prompt):
    with pytest.raises(CacheError):
        cache.get_or_compute(prompt, GREEDY, never)


def test_a_response_that_cannot_be_stored_is_given_all_the_same(cache, database, caplog):
    assert cache.get_or_compute(PROMPT, GREEDY, lambda: "nul \0").response == "nul \0"
    assert "NUL" in caplog.text
    assert rows(database, CachedResponse) == []


def test_a_response_is_text(cache):
    with pytest.raises(CacheError, match="int"):
        cache.get_or_compute(PROMPT, GREEDY, lambda: 4)


def test_a_database_that_is_away_keeps_nobody_from_an_answer(database, monkeypatch, caplog):
    cache = ResponseCache(database, NAMESPACE)

    def away(*_arguments, **_options):
        raise DatabaseUnavailable("away")

    for name in ("session", "transaction"):
        monkeypatch.setattr(database, name, away)
    monkeypatch.setattr(database.engine, "connect", away)
    assert cache.get_or_compute(PROMPT, GREEDY, lambda: "Paris") == ("Paris", None)
    cache.flush()
    assert "could not be kept" in caplog.text
    assert "not counted" in caplog.text


def test_an_audit_is_committed(cache, database, monkeypatch):
    monkeypatch.setattr(keys, "digest_of", lambda *_: digest("all the same"))
    cache.put(PROMPT, GREEDY, "Paris")
    assert cache.get("another", GREEDY) is None
    assert [each.reason for each in rows(database, CacheAudit)] == ["other_tokens"]


def test_a_collision_is_computed(cache, monkeypatch):
    monkeypatch.setattr(keys, "digest_of", lambda *_: digest("all the same"))
    cache.put(PROMPT, GREEDY, "Paris")
    assert cache.get_or_compute("another", GREEDY, lambda: "other") == ("other", None)


def test_what_expires_is_computed_again(database):
    cache = ResponseCache(database, NAMESPACE, ttl=60)
    cache.put(PROMPT, GREEDY, "Paris")
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE arc_halo.response_cache SET expires_at = now()"))
    assert cache.get_or_compute(PROMPT, GREEDY, lambda: "again") == ("again", None)


def test_hits_are_counted_when_the_cache_is_left(database):
    with ResponseCache(database, NAMESPACE) as cache:
        cache.get(PROMPT, GREEDY)
        cache.put(PROMPT, GREEDY, "Paris")
        for _ in range(3):
            cache.get(PROMPT, GREEDY)
        assert rows(database, CachedResponse)[0].hit_count == 0
    (row,) = rows(database, CachedResponse)
    (statistics,) = rows(database, CacheStatistics)
    assert row.hit_count == 3
    assert row.last_hit_at >= row.created_at
    assert statistics.hit_count == 3


def test_misses_before_anything_is_stored_are_counted(database, monkeypatch):
    monkeypatch.setattr(counting, "FLUSH_LOOKUPS", 4)
    with ResponseCache(database, NAMESPACE) as cache:
        for _ in range(6):
            cache.get(PROMPT, GREEDY)
        assert (cache._counts._lookups, cache._counts._lookups_since) == (6, 2)  # asked for a row once
        cache.put(PROMPT, GREEDY, "Paris")
        cache.get(PROMPT, GREEDY)
    (statistics,) = rows(database, CacheStatistics)
    assert (statistics.lookup_count, statistics.hit_count) == (7, 1)


def test_closing_writes_what_is_left_and_may_be_repeated(database):
    cache = ResponseCache(database, NAMESPACE)
    cache.put(PROMPT, GREEDY, "Paris")
    cache.get(PROMPT, GREEDY)
    cache.close()
    cache.close()
    assert rows(database, CacheStatistics)[0].lookup_count == 1


def test_a_child_of_fork_keeps_no_misses_of_its_parent(database):
    with ResponseCache(database, NAMESPACE) as cache:
        cache.get(PROMPT, GREEDY)
        cache.flush()
        cache._counts._writing.acquire()  # as if another thread were just writing
        child = os.fork()
        if child == 0:
            os._exit(1 if cache._counts._lookups or cache._counts._writing.locked() else 0)
        cache._counts._writing.release()
        assert os.waitpid(child, 0)[1] == 0


def test_hits_are_written_when_there_are_many(database, monkeypatch):
    monkeypatch.setattr(counting, "FLUSH_LOOKUPS", 4)
    cache = ResponseCache(database, NAMESPACE)
    cache.put(PROMPT, GREEDY, "Paris")
    for _ in range(5):
        cache.get(PROMPT, GREEDY)
    assert rows(database, CachedResponse)[0].hit_count == 4
    assert rows(database, CacheStatistics)[0].lookup_count == 4


def test_counting_waits_for_no_writer(database):
    cache = ResponseCache(database, NAMESPACE)
    cache.put(PROMPT, GREEDY, "Paris")
    cache.get(PROMPT, GREEDY)
    with database.session() as session:
        session.execute(text("SELECT FROM arc_halo.response_cache FOR UPDATE"))
        cache.flush()
    assert rows(database, CachedResponse)[0].hit_count == 0


@pytest.mark.parametrize(
    "options",
    [
        {"embed": embed},
        {"embedder": EMBEDDER},
        {"embed": embed, "embedder": "\0"},
        {"min_similarity": 2},
        {"ttl": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(database, options):
    with pytest.raises(CacheError):
        ResponseCache(database, NAMESPACE, **options)


def test_the_namespace_is_one_of_responses(database):
    with pytest.raises(CacheError):
        ResponseCache(database, replace(NAMESPACE, kind="activation"))

"""Responses are found again where they are certainly right, and nowhere else."""

import datetime as dt
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from arc_halo import create_model
from arc_halo.errors import CacheError
from arc_halo.inference.namespaces import Namespace, weights_of_model
from arc_halo.inference.responses import (
    find_response,
    find_similar_response,
    finding,
    keys,
    put_response,
    settings_digest,
)
from arc_halo.schema import CacheAudit, CachedResponse, CacheQuota
from tests.fixtures.embedding import EMBEDDER, embed
from tests.schema.rows import add, digest

NAMESPACE = Namespace(
    kind="response", weights_digest=digest("weights"), config_digest=digest("config"), dtype="F32", layout="text"
)
GREEDY = {"temperature": 0, "max_tokens": 16}
PROMPT = "what is the capital of france"


def put(session, prompt=PROMPT, response="Paris", *, namespace=NAMESPACE, settings=GREEDY, **options):
    return put_response(session, namespace, prompt, settings, response, **options)


def put_embedded(session, prompt, response="answer", *, dimension=384, embedder=EMBEDDER, **options):
    return put(session, prompt, response, embedding=embed(prompt, dimension), embedder=embedder, **options)


def found(session, prompt=PROMPT, *, namespace=NAMESPACE, settings=GREEDY):
    hit = find_response(session, namespace, prompt, settings)
    return hit and hit.response


def similar(session, prompt, least=0.8, *, namespace=NAMESPACE, settings=GREEDY, embedder=EMBEDDER, dimension=384):
    return find_similar_response(
        session, namespace, embed(prompt, dimension), settings, embedder=embedder, min_similarity=least
    )


def count(session, table):
    return session.scalar(select(func.count()).select_from(table))


def test_a_response_is_found_with_all_that_came_with_it(session):
    assert found(session) is None
    put(session, details={"tokens": 3, "stop": "eos"}, compute_seconds=1.5)
    hit = find_response(session, NAMESPACE, PROMPT, {"max_tokens": 16, "temperature": 0.0})
    assert (hit.response, hit.prompt, hit.similarity, hit.compute_seconds) == ("Paris", PROMPT, 1.0, 1.5)
    assert hit.details == {"tokens": 3, "stop": "eos"}


def test_a_response_takes_the_place_of_another(session):
    put(session)
    put(session, response="Paris, France")
    assert found(session) == "Paris, France"
    assert count(session, CachedResponse) == 1


OTHERS = {
    "weights": {"weights_digest": digest("other")},
    "config": {"config_digest": digest("other")},
    "adapter": {"adapter_digest": digest("other")},
    "tokenizer": {"tokenizer_digest": digest("other")},
    "type": {"dtype": "BF16"},
    "salt": {"salt": b"other"},
    "tenant": {"tenant_id": 1},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_another_namespace_has_is_a_miss(session, other):
    put_embedded(session, PROMPT)
    elsewhere = replace(NAMESPACE, **other)
    assert found(session, namespace=elsewhere) is None
    assert similar(session, PROMPT, namespace=elsewhere) is None
    put(session, response="other", namespace=elsewhere)
    assert (found(session), found(session, namespace=elsewhere)) == ("answer", "other")


@pytest.mark.parametrize(
    "settings", [{}, GREEDY | {"temperature": 0.1}, GREEDY | {"seed": None}, GREEDY | {"max_tokens": "16"}]
)
def test_other_settings_are_a_miss(session, settings):
    put_embedded(session, PROMPT)
    assert found(session, settings=settings) is None
    assert similar(session, PROMPT, settings=settings) is None


@pytest.mark.parametrize("prompt", ["", PROMPT + " ", PROMPT.upper(), "e\u0301", "\u00e9"])
def test_another_prompt_is_a_miss(session, prompt):
    put(session)
    put(session, "\u00e9" if prompt == "e\u0301" else "e\u0301")
    assert found(session, prompt) is None


@pytest.fixture
def registered(session):
    """A model of the database, and the namespace of its responses."""
    model = create_model(session, "small", {}, {"weight": np.ones((4, 4), np.float32)})
    _, weights = weights_of_model(session, model)
    namespace = replace(NAMESPACE, weights_digest=weights, is_registered=True, model_id=model.id)
    put_embedded(session, PROMPT, namespace=namespace)
    assert found(session, namespace=namespace) == "answer"
    return model, namespace


def test_nothing_is_served_for_an_archived_model(session, registered):
    model, namespace = registered
    model.status = "archived"
    session.flush()
    for each in (namespace, replace(namespace, model_id=None)):
        assert found(session, namespace=each) is None
        assert similar(session, PROMPT, namespace=each) is None


def test_nothing_is_served_for_weights_that_were_changed(session, registered):
    model, namespace = registered
    model.weights_digest = None
    session.flush()
    assert found(session, namespace=namespace) is None
    assert similar(session, PROMPT, namespace=namespace) is None


def test_a_collision_of_digests_is_a_miss_and_an_audit(session, monkeypatch):
    monkeypatch.setattr(keys, "digest_of", lambda *_: digest("all the same"))
    put_embedded(session, PROMPT)
    assert found(session) == "answer"
    assert found(session, "another prompt") is None
    assert found(session, settings={"temperature": 1}) is None
    assert similar(session, PROMPT, settings={"temperature": 1}) is None
    audits = session.scalars(select(CacheAudit)).all()
    (response_id,) = session.scalars(select(CachedResponse.id))
    assert [(each.kind, each.reason) for each in audits] == [("response", "other_tokens")] * 3
    assert {each.details["response_id"] for each in audits} == {str(response_id)}


def test_the_nearest_prompt_answers_if_it_is_near_enough(session):
    put_embedded(session, "please tell me the capital of france", "Paris")
    put_embedded(session, "please tell me the capital of spain", "Madrid")
    hit = similar(session, "tell me the capital of france")
    assert (hit.response, hit.prompt) == ("Paris", "please tell me the capital of france")
    assert hit.similarity == pytest.approx(np.sqrt(6 / 7))
    assert similar(session, "tell me the capital of france", least=0.93) is None
    assert similar(session, "how do cats sleep") is None


def test_embeddings_of_another_embedder_are_not_compared(session):
    put_embedded(session, PROMPT)
    assert similar(session, PROMPT, embedder="words@2") is None
    assert similar(session, PROMPT, dimension=768) is None
    assert similar(session, PROMPT).response == "answer"


@pytest.mark.parametrize("dimension", [7, 384, 768])
def test_embeddings_of_any_dimension_are_compared(session, dimension):
    put_embedded(session, PROMPT, dimension=dimension)
    put_embedded(session, "another dimension", dimension=12)
    assert similar(session, PROMPT, dimension=dimension).similarity == pytest.approx(1)


def test_what_has_no_embedding_is_found_by_the_same_prompt_only(session):
    put(session)
    assert similar(session, PROMPT, least=-1) is None


def test_an_index_finds_what_comparing_all_finds(session, monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(60, 384))
    for number, vector in enumerate(vectors):
        for each in (NAMESPACE, replace(NAMESPACE, salt=b"other")):
            put(session, str(number), f"{number} {each.salt}", namespace=each, embedding=vector, embedder=EMBEDDER)

    def nearest():
        options = {"embedder": EMBEDDER, "min_similarity": 0.5}
        return [find_similar_response(session, NAMESPACE, vector + 0.2, GREEDY, **options) for vector in vectors]

    compared = nearest()
    assert [each.response for each in compared] == [f"{number} b''" for number in range(60)]
    monkeypatch.setattr(finding, "EXACT_ROW_COUNT", 10)
    session.execute(text("SET LOCAL enable_sort TO off"))
    session.execute(text("SET LOCAL hnsw.iterative_scan TO relaxed_order"))
    assert nearest() == compared
    assert session.scalar(text("SELECT current_setting('hnsw.iterative_scan')")) == "relaxed_order"


def test_the_statement_can_use_the_index(session):
    session.execute(text("SET LOCAL enable_sort TO off"))
    names = ("tenant_id", "namespace_id", "settings_digest", "settings", "embedder", "embedding")
    vector = "[" + ",".join(["1"] * 384) + "]"
    row = dict(zip(names, (0, 1, digest("settings"), "{}", EMBEDDER, vector), strict=True))
    plans = [
        "\n".join(session.scalars(text("EXPLAIN " + finding.nearest_statement(384, is_exact=is_exact)), row))
        for is_exact in (False, True)
    ]
    assert ["ix_response_cache_vector_384" in plan for plan in plans] == [True, False]


def test_embeddings_are_compared_by_direction_whatever_their_length(session):
    huge = embed(PROMPT).astype(np.float64) * 1e300
    put(session, embedding=huge, embedder=EMBEDDER)
    hit = find_similar_response(
        session, NAMESPACE, embed(PROMPT) * 1e-30, GREEDY, embedder=EMBEDDER, min_similarity=0.999
    )
    assert hit.response == "Paris"


@pytest.mark.parametrize(
    "embedding",
    [np.zeros(4), [np.nan, 1.0], [np.inf, 1.0], np.ones((2, 2)), [], ["a"], np.ones(16_001), [1 + 1j]],
    ids=["zeros", "nan", "inf", "matrix", "empty", "text", "long", "complex"],
)
def test_what_is_no_embedding_is_refused(session, embedding):
    with pytest.raises(CacheError):
        put(session, embedding=embedding, embedder=EMBEDDER)
    with pytest.raises(CacheError):
        find_similar_response(session, NAMESPACE, embedding, GREEDY, embedder=EMBEDDER, min_similarity=0.5)


def expire(session):
    session.execute(text("UPDATE arc_halo.response_cache SET expires_at = clock_timestamp()"))


def test_what_has_expired_is_a_miss_before_the_sweep(session):
    put_embedded(session, PROMPT, ttl=dt.timedelta(hours=1))
    assert found(session) == "answer"
    expire(session)
    assert found(session) is None
    assert similar(session, PROMPT) is None
    put_embedded(session, PROMPT, ttl=60)
    assert found(session) == "answer"


def test_what_is_pinned_does_not_expire(session):
    put(session, ttl=1, pinned=True)
    put(session, ttl=1)
    expire(session)
    assert found(session) == "Paris"


NOON = dt.datetime(2026, 11, 22, 12)  # noqa: DTZ001  naive is the point


@pytest.mark.parametrize(
    "ttl", [0, -1, 1e300, float("nan"), float("inf"), dt.timedelta(0), dt.timedelta(seconds=-1), NOON, True, "60"]
)
def test_what_is_no_time_to_live_is_refused(session, ttl):
    with pytest.raises(CacheError):
        put(session, ttl=ttl)


@pytest.mark.parametrize(
    ("prompt", "settings", "response", "options"),
    [
        ("nul \0", {}, "", {}),
        ("half a pair \ud800", {}, "", {}),
        (b"bytes", {}, "", {}),
        ("", {"stop": "\0"}, "", {}),
        ("", {"\0": 1}, "", {}),
        ("", {"temperature": float("nan")}, "", {}),
        ("", {"temperature": float("inf")}, "", {}),
        ("", {1: 2}, "", {}),
        ("", {"seed": np.float32(1)}, "", {}),
        ("", [("seed", 1)], "", {}),
        ("", {"seed": 10**5000}, "", {}),
        ("", {}, "nul \0", {}),
        ("", {}, None, {}),
        ("", {}, "", {"details": {"score": float("nan")}}),
        ("", {}, "", {"compute_seconds": -1}),
        ("", {}, "", {"compute_seconds": float("nan")}),
        ("", {}, "", {"embedding": [1.0]}),
        ("", {}, "", {"embedder": EMBEDDER}),
        ("", {}, "", {"embedding": [1.0], "embedder": ""}),
        ("", {}, "", {"embedding": [1.0], "embedder": "\0"}),
    ],
)
def test_what_cannot_be_stored_is_refused(session, prompt, settings, response, options):
    with pytest.raises(CacheError):
        put_response(session, NAMESPACE, prompt, settings, response, **options)
    assert count(session, CachedResponse) == 0


def test_settings_that_contain_themselves_are_refused():
    settings = {}
    settings["again"] = settings
    with pytest.raises(CacheError):
        settings_digest(settings)


def test_only_a_namespace_of_responses_has_responses(session):
    other = NAMESPACE.of_kind("activation", dtype="F32", layout="x")
    for use in (put, found):
        with pytest.raises(CacheError, match="activation"):
            use(session, namespace=other)


@pytest.mark.parametrize("least", [1.01, -1.01, float("nan")])
def test_what_is_no_cosine_is_refused(session, least):
    with pytest.raises(CacheError):
        similar(session, PROMPT, least)


@pytest.fixture
def quota(session):
    """Room for three responses of a thousand letters."""
    return add(session, CacheQuota(tenant_id=0, kind="response", max_nbytes=3300))


def put_thousand(session, name, **options):
    return put(session, name, "x" * 1000, **options)


def stored(session):
    return sorted(session.scalars(select(CachedResponse.prompt)))


def age(session, prompt, seconds, column="last_hit_at"):
    session.execute(
        text(f"UPDATE arc_halo.response_cache SET {column} = now() - make_interval(secs => :s) WHERE prompt = :p"),
        {"s": seconds, "p": prompt},
    )


@pytest.mark.usefixtures("quota")
def test_what_was_used_longest_ago_makes_room(session):
    for name in "abc":
        put_thousand(session, name)
    for name, seconds in (("a", 10), ("b", 30), ("c", 20)):
        age(session, name, seconds)
    assert put_thousand(session, "d")
    assert stored(session) == ["a", "c", "d"]
    assert put_thousand(session, "a")
    assert stored(session) == ["a", "c", "d"]


@pytest.mark.usefixtures("quota")
def test_what_has_expired_makes_room_first(session):
    for name in "abc":
        put_thousand(session, name, ttl=60)
    age(session, "b", 1, "expires_at")
    put_thousand(session, "d")
    assert stored(session) == ["a", "c", "d"]


@pytest.mark.usefixtures("quota")
def test_what_is_pinned_makes_no_room(session):
    for name in "ab":
        put_thousand(session, name, pinned=True)
    put_thousand(session, "c")
    put_thousand(session, "d")
    assert stored(session) == ["a", "b", "d"]
    put_thousand(session, "d", pinned=True)
    assert not put_thousand(session, "e")
    with pytest.raises(CacheError, match="quota"):
        put_thousand(session, "e", pinned=True)
    assert stored(session) == ["a", "b", "d"]


def test_a_pin_that_comes_while_room_is_made_is_kept(database):
    with database.session() as session, session.begin():
        session.add(CacheQuota(tenant_id=0, kind="response", max_nbytes=2200))
        for name in "ab":
            put_thousand(session, name)
            age(session, name, 10, "created_at")
    with database.session() as session, ThreadPoolExecutor(1) as pool:
        session.execute(text("UPDATE arc_halo.response_cache SET is_pinned = true WHERE prompt = 'a'"))
        putting = pool.submit(database.transaction, lambda other: put_thousand(other, "c"))
        time.sleep(0.5)
        session.commit()
        putting.result()
        assert "a" in stored(session)


@pytest.mark.usefixtures("quota")
def test_what_is_larger_than_the_quota_is_not_stored(session):
    put_thousand(session, "a")
    assert not put(session, "b", "x" * 4000)
    assert stored(session) == ["a"]


@pytest.mark.usefixtures("quota")
def test_a_quota_is_one_tenants_and_of_one_kind(session):
    add(session, CacheQuota(tenant_id=1, kind="kv", max_nbytes=0))
    for name in "abcd":
        put_thousand(session, name, namespace=replace(NAMESPACE, tenant_id=1))
    assert stored(session) == list("abcd")


@pytest.mark.parametrize("is_limited", [False, True])
def test_fifty_writers_of_one_key_leave_one_row(database, is_limited):
    with database.session() as session:
        if is_limited:
            session.add(CacheQuota(tenant_id=0, kind="response", max_nbytes=2000))
        session.commit()

    def write(number):
        with database.session() as session:
            put_embedded(session, PROMPT, f"answer {number}")
            session.commit()

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(write, range(50)))
    with database.session() as session:
        assert count(session, CachedResponse) == 1
        assert found(session).startswith("answer ")


def test_writers_together_keep_to_the_quota(database):
    with database.session() as session:
        session.add(CacheQuota(tenant_id=0, kind="response", max_nbytes=3300))
        session.commit()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: database.transaction(lambda session: put_thousand(session, str(n))), range(40)))
    with database.session() as session:
        assert count(session, CachedResponse) == 3


def test_the_caller_commits(database):
    with database.session() as session:
        put(session)
        session.rollback()
    with database.session() as session:
        assert found(session) is None


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
SETTINGS = st.dictionaries(TEXTS, VALUES, max_size=4)


def shape(value):
    """Equal for what is equal as JSON: in Python True is 1, too."""
    match value:
        case bool() | None | str():
            return (type(value).__name__, value)
        case int() | float():
            return ("number", value)
        case list() | tuple():
            return ("list", tuple(map(shape, value)))
        case dict():
            return ("dict", frozenset((key, shape(each)) for key, each in value.items()))


def respelled(value):
    """Equal as JSON, and spelled otherwise."""
    match value:
        case bool() | None | str():
            return value
        case int():
            return float(value) if abs(value) < 1 << 53 else value
        case float():
            return int(value) if value.is_integer() else value
        case list():
            return tuple(map(respelled, value))
        case dict():
            return {key: respelled(value[key]) for key in reversed(value)}


@given(SETTINGS)
def test_settings_that_are_equal_have_one_digest(settings):
    assert settings_digest(respelled(settings)) == settings_digest(settings)


@given(SETTINGS, SETTINGS)
def test_settings_that_differ_have_different_digests(one, other):
    assert (settings_digest(one) == settings_digest(other)) == (shape(one) == shape(other))


@given(VALUES, VALUES)
def test_values_that_differ_have_different_digests(one, other):
    assert (settings_digest({"": one}) == settings_digest({"": other})) == (shape(one) == shape(other))


def test_digests_are_part_of_the_stored_format():
    expected = "82a9282590a964a615ea86a0013c3fdb836013b7318234209450fea3612b593d"
    assert settings_digest({"temperature": 0.5, "stop": ["\u00e9"], "seed": 1.0, "n": None}).hex() == expected

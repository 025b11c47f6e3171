"""``arc-halo cache``: the caches in the database."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select, update

from arc_halo import connect
from arc_halo.inference.kv import KVCache, store_prefix
from arc_halo.inference.namespaces import Namespace, ensure_namespace
from arc_halo.inference.responses import put_response
from arc_halo.schema import (
    CacheAudit,
    CachedActivation,
    CachedResponse,
    CacheNamespace,
    CacheQuota,
    CacheStatistics,
    KVCacheBlock,
    Model,
)
from tests.inference.kv import LAYOUT, make_layers, make_namespace
from tests.inference.used import store_model
from tests.schema.rows import add, add_tensor, digest

if TYPE_CHECKING:
    from tests.cli.command_line import CommandLine

TEXT = list(range(100, 111))  # two whole blocks of four, and three tokens
WORDS = ",".join(map(str, TEXT))
NBYTES = len(TEXT) * LAYOUT.token_nbytes
ANSWERS = Namespace(
    kind="response", weights_digest=digest("weights"), config_digest=digest("config"), dtype="F32", layout="text"
)


@pytest.fixture
def database(migrated_url):
    with connect(migrated_url) as found:
        yield found


@pytest.fixture
def cached(arc_halo: CommandLine, database) -> CommandLine:
    """With a prefix of ``m@1``, asked for twice with one hit, and a response."""
    store_model(database)
    namespace = make_namespace(is_registered=True)
    with KVCache(database, namespace, LAYOUT) as cache:
        cache.store(TEXT, make_layers(TEXT))
        cache.lookup(TEXT[:4])
        cache.lookup([1, 2, 3, 4])
    database.transaction(lambda session: put_response(session, ANSWERS, "2 + 2 =", {}, "4"))
    return arc_halo


def measure(database, read, computed):
    """Note what reading and computing took."""
    took = {"read_nbytes": read, "read_seconds": 1, "computed_token_count": computed, "computed_seconds": 1}
    database.transaction(lambda session: session.execute(update(CacheStatistics).values(took)))


def archive(database):
    database.transaction(lambda session: session.execute(update(Model).values(status="archived")))


def counted(database, table):
    with database.session() as session:
        return session.scalar(select(func.count()).select_from(table))


def pinned(database):
    with database.session() as session:
        return list(session.scalars(select(KVCacheBlock.is_pinned).order_by(KVCacheBlock.position)))


def test_stats(cached: CommandLine, database):
    measure(database, read=3_000_000_000, computed=10_000)
    header, kv, response, *totals = cached.says("cache", "stats").splitlines()
    assert header.split()[:8] == ["namespace", "kind", "models", "type", "block", "salt", "entries", "size"]
    figures = ["3", "1.3", "kB", "2", "50%", "50%", "3,000", "10,000", f"{LAYOUT.token_nbytes / 100:.4g}"]
    assert kv.split() == ["1", "kv", "m@1", "F32", "4", "no", *figures]
    assert response.split()[:6] == ["2", "response", "m@1", "F32", "no", "1"]
    assert totals == ["kv: 3 blocks, 1.3 kB", f"response: 1 response, {totals[1].split(', ')[1]}"]


def test_namespaces_of_one_model_are_told_apart(cached: CommandLine, database):
    rounded = make_namespace(is_registered=True, precision="int8", salt=b"ada", block_token_count=8)
    activations = replace(ANSWERS, kind="activation", layout="token,width")
    for other in (rounded, activations):
        database.transaction(lambda session, other=other: ensure_namespace(session, other))
    measure(database, read=1, computed=0)
    lines = cached.says("cache", "stats").splitlines()
    (activation,) = [line.split() for line in lines if " activation " in line]
    assert activation[1:6] == ["activation", "m@1", "F32", "no", "0"]
    assert "0" not in activation[9:]
    assert [line.split()[3:8] for line in lines if "int8" in line] == [["F32", "as", "int8", "8", "yes"]]
    salted = {each["namespace_id"]: each["has_salt"] for each in cached.json("cache", "stats")["namespaces"]}
    assert sorted(salted.values()) == [False, False, False, True]


def test_stats_as_json(cached: CommandLine, database):
    measure(database, read=0, computed=10)
    cached.run("cache", "quota", "kv", "1MB")
    told = cached.json("cache", "stats")
    kv = told["namespaces"][0]
    assert (kv["models"], kv["is_servable"], kv["entry_count"], kv["stored_nbytes"]) == (["m@1"], True, 3, NBYTES)
    assert (kv["hit_rate"], kv["token_hit_rate"]) == (1 / 2, 4 / 8)
    assert kv["break_even_nbytes_per_second"] == 10 * LAYOUT.token_nbytes
    assert told["totals"]["kv"]["entry_count"] == 3
    assert told["quotas"] == {"kv": 1_000_000}


def test_stats_of_a_retired_version(cached: CommandLine, database):
    archive(database)
    assert "retired: the next sweep deletes it" in cached.says("cache", "stats")
    assert [each["is_servable"] for each in cached.json("cache", "stats")["namespaces"]] == [False, True]


def test_where_nothing_is_cached(arc_halo: CommandLine):
    assert arc_halo.says("cache", "stats") == "nothing is cached yet\n"
    assert arc_halo.json("cache", "stats") == {"namespaces": [], "totals": {}, "quotas": {}}
    assert arc_halo.says("cache", "top") == "no block was given back yet\n"
    assert arc_halo.says("cache", "audits") == "nothing that was found was refused\n"
    assert arc_halo.says("cache", "sweep") == "nothing to delete\n"
    assert "no model" in arc_halo.error("cache", "explain", "1", "--model", "m")


def test_top(cached: CommandLine):
    header, block = cached.says("cache", "top").splitlines()
    assert header.split() == ["hits", "last", "hit", "size", "models", "kept", "first", "tokens"]
    assert block.split()[0] == "1"
    assert block.endswith("block 0: 100, 101, 102, 103")
    (fields,) = cached.json("cache", "top", "--kind", "kv", "--limit", 5)
    assert (fields["hit_count"], fields["token_count"], fields["first_tokens"]) == (1, 4, TEXT[:4])
    assert fields["models"] == ["m@1"]


def test_top_of_responses(cached: CommandLine, database):
    used = {"hit_count": 7, "last_hit_at": func.now()}
    database.transaction(lambda session: session.execute(update(CachedResponse).values(used)))
    assert cached.says("cache", "top", "--kind", "response").splitlines()[1].split()[0] == "7"
    (fields,) = cached.json("cache", "top", "--kind", "response")
    assert (fields["prompt"], fields["hit_count"], fields["first_tokens"]) == ("2 + 2 =", 7, None)
    assert cached.json("cache", "top", "--kind", "activation") == []


def test_top_of_activations(cached: CommandLine, database):
    def put(session):
        of_weights = session.scalars(select(CacheNamespace).where(CacheNamespace.kind == "response")).one()
        place = {"namespace_id": of_weights.id, "hook_point": "layers.1.mlp", "input_digest": digest("input")}
        used = {"hit_count": 2, "last_hit_at": func.now(), "is_pinned": True}
        add(session, CachedActivation(**place, **used, tensor_id=add_tensor(session, 4).id))

    database.transaction(put)
    line = cached.says("cache", "top", "--kind", "activation").splitlines()[1]
    assert line.endswith("16 bytes  m@1     pinned  layers.1.mlp")
    (fields,) = cached.json("cache", "top", "--kind", "activation")
    assert (fields["hit_count"], fields["nbytes"], fields["hook_point"]) == (2, 16, "layers.1.mlp")


def test_stats_of_a_layout_that_nobody_here_can_read(cached: CommandLine, database):
    database.transaction(lambda session: session.execute(update(CacheNamespace).values(layout="of tomorrow")))
    assert cached.json("cache", "stats")["namespaces"][0]["break_even_nbytes_per_second"] is None


def test_sweep(cached: CommandLine, database):
    past = func.now() - dt.timedelta(seconds=1)
    database.transaction(lambda session: session.execute(update(KVCacheBlock).values(expires_at=past)))
    assert cached.says("cache", "sweep", "--batch", 1) == "deleted 3 blocks\n"
    assert counted(database, KVCacheBlock) == 0
    expected = {"kv_cache_count": 0, "activation_cache_count": 0, "response_cache_count": 0, "evicted_count": 0}
    assert cached.json("cache", "sweep") == expected


def test_a_sweep_keeps_to_the_quota(cached: CommandLine, database):
    assert cached.says("cache", "quota", "kv", 8 * LAYOUT.token_nbytes) == "kv: at most 960 bytes\n"
    assert cached.says("cache", "sweep") == "deleted 1 beyond a quota\n"
    assert "kv: 2 blocks, 960 bytes of 960 bytes allowed" in cached.says("cache", "stats")
    assert cached.says("cache", "quota", "kv") == "kv: at most 960 bytes\n"
    assert cached.json("cache", "quota", "response") == {"kind": "response", "max_nbytes": None}
    assert cached.json("cache", "quota", "kv", "none") == {"kind": "kv", "max_nbytes": None}
    assert counted(database, CacheQuota) == 0


@pytest.mark.parametrize("wrong", ["-1", "lots", "1.5GB"])
def test_a_quota_is_a_number_of_bytes(arc_halo: CommandLine, wrong):
    assert "none" in arc_halo.run("cache", "quota", "kv", "--", wrong, code=2).stderr


def test_pin(cached: CommandLine, database):
    assert cached.says("cache", "pin", "100,101 102", 103, 104, "--model", "m@1") == "pinned 5 of 5 tokens of m@1\n"
    assert pinned(database) == [True, True, False]
    (of,) = cached.json("cache", "pin", WORDS, "--model", "m", "--unpin")["namespaces"]
    assert of["token_count"] == 11
    assert pinned(database) == [False] * 3


def test_what_is_not_stored_cannot_be_pinned(cached: CommandLine):
    assert "nothing of these 2 tokens is stored for m" in cached.error("cache", "pin", "7,8", "--model", "m")
    assert cached.json("cache", "pin", "7", "--model", "m", "--unpin")["namespaces"][0]["token_count"] == 0


@pytest.mark.parametrize(
    ("words", "said"), [(["1,x"], "'x' is no token id"), ([], "give TOKENS"), (["1", "--text", "one"], "give TOKENS")]
)
@pytest.mark.parametrize("verb", ["pin", "explain"])
def test_tokens_are_numbers(cached: CommandLine, verb, words, said):
    assert said in cached.run("cache", verb, *words, "--model", "m", code=2).stderr


def test_a_text_needs_a_library(cached: CommandLine, monkeypatch):
    monkeypatch.setattr("arc_halo.cli.extras.find_spec", lambda _name: None)
    assert "pip install 'arc-halo[transformers]'" in cached.error("cache", "explain", "--text", "one", "--model", "m")


def test_clear_asks(cached: CommandLine, database):
    asked = cached.run("cache", "clear", answer="n\n", code=1)
    assert "Delete 4 entries" in asked.stderr
    assert counted(database, CacheNamespace) == 2
    assert cached.says("cache", "clear", "--kind", "kv", answer="y\n").endswith(
        "deleted 3 entries of 1 namespace, 1.3 kB\n"
    )
    assert counted(database, KVCacheBlock) == 0


def test_clear_of_one_model(cached: CommandLine, database):
    store_model(database, "n")
    other = make_namespace(weights_digest=digest("other"))
    database.transaction(lambda session: store_prefix(session, other, TEXT, make_layers(TEXT)))
    cleared = cached.json("cache", "clear", "--model", "m", "--yes")
    assert (cleared["namespace_count"], cleared["entry_count"]) == (2, 4)
    assert counted(database, KVCacheBlock) == 3
    assert cached.json("cache", "clear", "-y")["namespace_count"] == 1


def test_audits(cached: CommandLine, database):
    bad = {"kind": "kv", "reason": "bad_payload", "details": {"block": "0f", "layer": 1}, "namespace_id": 3}
    database.transaction(lambda session: session.add(CacheAudit(**bad)))
    database.transaction(lambda session: session.add(CacheAudit(kind="response", reason="unreadable")))
    _, newest, oldest = cached.says("cache", "audits").splitlines()
    assert "unreadable" in newest
    assert oldest.endswith("bad payload  block 0f, layer 1")
    (only,) = cached.json("cache", "audits", "--kind", "kv", "--limit", 1)
    assert (only["reason"], only["details"], only["namespace_id"]) == ("bad_payload", {"block": "0f", "layer": 1}, 3)


def test_explain(cached: CommandLine):
    said = cached.says("cache", "explain", "100,101,102,103 104,105,9", "--model", "m").splitlines()
    assert said[0].startswith("namespace 1: F32, exact, blocks of 4, config ")
    assert said[1].split() == ["block", "tokens", "hash", "stored", "how", "expires", "size", "hits"]
    assert said[2].split()[:2] == ["0", "0-3"]
    assert said[2].split()[3:] == ["used", "logged", "never", "480", "bytes", "1"]
    assert said[3].split()[1] == "4-7"
    assert said[3].split()[3:8] == ["2", "of", "these", "4", "used"]
    assert said[4] == "6 of 7 tokens: other tokens are stored behind it, such as 106 at 6"


def test_explain_shows_what_is_stored_of_a_longer_prompt(cached: CommandLine):
    last = cached.says("cache", "explain", WORDS, "1", "--model", "m").splitlines()[4]
    assert last.split()[1] == "8-10"
    assert " used " in last


def test_explain_as_json(cached: CommandLine):
    (namespace,) = cached.json("cache", "explain", WORDS, 7, "--model", "m")
    assert (namespace["hit_token_count"], namespace["end"]) == (11, "nothing_after")
    assert [block["used_token_count"] for block in namespace["blocks"]] == [4, 4, 3]
    assert namespace["blocks"][0]["stored"]["token_ids"] == TEXT[:4]
    (missed,) = cached.json("cache", "explain", "7", "--model", "m")
    assert [block["stored"] for block in missed["blocks"]] == [None]


def test_explain_of_a_retired_version(cached: CommandLine, database):
    archive(database)
    assert cached.says("cache", "explain", WORDS, "--model", "m").endswith(
        "nothing is served: the version is archived\n"
    )


def test_explain_of_a_model_without_a_cache(arc_halo: CommandLine, database):
    store_model(database)
    assert (
        arc_halo.says("cache", "explain", 1, "--model", "m") == "no keys and values are stored for the weights of m\n"
    )

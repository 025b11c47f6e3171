"""No wrong hit: whatever changes what would be computed is a miss, and whatever was damaged is, with an audit."""

import struct

import pytest
from sqlalchemy import select, text, update

from arc_halo.errors import CacheError, WeightsNotFinal
from arc_halo.inference.kv import KVCache, find_prefix, hashing, load_prefix, store_prefix
from arc_halo.inference.namespaces import Namespace, weights_of_model
from arc_halo.schema import CacheAudit, KVCacheBlock, Model
from tests.inference.kv import BLOCK, LAYOUT, make_layers, make_namespace, same
from tests.schema.rows import add_model, digest

TEXT = list(range(100, 110))


def hit(session, namespace, tokens=TEXT):
    return find_prefix(session, namespace, tokens).token_count


@pytest.mark.parametrize(
    "changes",
    [
        {"weights_digest": digest("other weights")},
        {"adapter_digest": digest("adapter")},
        {"tokenizer_digest": digest("tokenizer")},
        {"config_digest": digest("rope scaling")},
        {"dtype": "BF16"},
        {"layout": "2x[1,4/4]"},
        {"block_token_count": BLOCK + 1},
        {"precision": "int8"},
        {"salt": b"tenant"},
        {"tenant_id": 1},
        {"is_registered": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_namespace_misses(session, changes):
    store_prefix(session, make_namespace(), TEXT, make_layers(TEXT))
    assert hit(session, make_namespace()) == len(TEXT)
    assert hit(session, make_namespace(**changes)) == 0


@pytest.fixture
def registered(session):
    """A version with cached keys and values, and the namespace that asks for it."""
    model = add_model(session, name="lm", weights_digest=digest("of lm@1"))
    namespace = make_namespace(weights_digest=model.weights_digest, is_registered=True, model_id=model.id)
    store_prefix(session, namespace, TEXT, make_layers(TEXT), pinned=True)
    assert hit(session, namespace) == len(TEXT)
    return model, namespace


def test_weights_changed_in_place_miss(session, registered):
    model, namespace = registered
    model.weights_digest = digest("changed")
    session.flush()
    assert hit(session, namespace) == 0
    renewed = make_namespace(weights_digest=model.weights_digest, is_registered=True, model_id=model.id)
    assert hit(session, renewed) == 0


@pytest.mark.parametrize("retire", ["archive", "change", "delete"])
def test_a_retired_version_misses(session, registered, retire):
    model, namespace = registered
    if retire == "delete":
        session.delete(model)
    else:
        changed = {"status": "archived"} if retire == "archive" else {"weights_digest": None}
        session.execute(update(Model).where(Model.id == model.id).values(changed))
    session.flush()
    assert hit(session, namespace) == 0


def test_a_version_of_the_same_weights_goes_on(session, registered):
    model, namespace = registered
    twin = add_model(session, name="lm", version="2", weights_digest=model.weights_digest)
    model.status = "archived"
    session.flush()
    assert hit(session, namespace) == 0
    asked_by_twin = make_namespace(weights_digest=twin.weights_digest, is_registered=True, model_id=twin.id)
    assert hit(session, asked_by_twin) == len(TEXT)


def test_two_models_of_one_name_on_two_branches(session):
    """Branches share nothing but what was there: a name and the cache, while the weights went apart."""
    ours, theirs = (make_namespace(weights_digest=digest(branch), is_registered=True) for branch in ("ours", "theirs"))
    model = add_model(session, name="lm", weights_digest=ours.weights_digest)
    store_prefix(session, ours, TEXT, make_layers(TEXT))
    assert hit(session, ours) == len(TEXT)
    model.weights_digest = theirs.weights_digest  # the branch's own training
    session.flush()
    assert hit(session, theirs) == 0
    assert hit(session, ours) == 0


def test_only_versions_with_final_weights_are_cached_for(session):
    model = add_model(session, weights_digest=None)
    with pytest.raises(WeightsNotFinal):
        weights_of_model(session, model)
    model.weights_digest, model.status = digest("w"), "archived"
    with pytest.raises(CacheError, match="archived"):
        weights_of_model(session, model)
    model.status = "trained"
    assert weights_of_model(session, model) == (model, digest("w"))


def test_a_codec_that_there_is_not_is_refused_at_once(database):
    with pytest.raises(CacheError, match="none, lossless and int8"):
        KVCache(database, make_namespace(), LAYOUT, codec="zip")


@pytest.fixture
def colliding(monkeypatch):
    """Hashes of one bit: nearly every block has the name of another."""

    def truncated(parent, tokens):
        return bytes([complete(parent, tokens)[0] & 1]) + bytes(31)

    complete = hashing.block_hash
    monkeypatch.setattr(hashing, "block_hash", truncated)


@pytest.mark.usefixtures("colliding")
def test_colliding_hashes_never_give_other_tokens(database):
    namespace = make_namespace()
    with KVCache(database, namespace, LAYOUT) as cache:
        for seed in range(40):
            tokens = [seed % 7, seed % 5, *range(seed, seed + 9)]
            cache.store(tokens, make_layers(tokens))
            layers, count = cache.restore(tokens)
            assert same(layers, make_layers(tokens[:count]))
    with database.session() as session:
        assert set(session.scalars(select(CacheAudit.reason))) == {"other_tokens"}


@pytest.mark.usefixtures("colliding")
def test_what_stood_behind_a_block_is_gone_when_another_takes_its_hash(session):
    """The second block is right only after the first; under its hash may later stand another."""
    namespace = make_namespace()
    by_hash = {}
    for number in range(64):
        by_hash.setdefault(hashing.block_hash(namespace.digest, hashing.pack_tokens([number] * 4)), number)
    first, twin = next(
        (number, other)
        for number in range(64)
        for other in range(64)
        if number != other
        and hashing.block_hash(namespace.digest, hashing.pack_tokens([number] * 4))
        == hashing.block_hash(namespace.digest, hashing.pack_tokens([other] * 4))
    )
    tail = [1, 2, 3, 4]
    store_prefix(session, namespace, [first] * 4 + tail, make_layers([first] * 4 + tail))
    stored = session.scalar(select(KVCacheBlock).where(KVCacheBlock.position == 0))
    session.delete(stored)
    session.flush()
    store_prefix(session, namespace, [twin] * 4, make_layers([twin] * 4))
    assert find_prefix(session, namespace, [twin] * 4 + tail).token_count == 4


@pytest.fixture
def cache(database):
    with KVCache(database, make_namespace(), LAYOUT) as cache:
        cache.store(TEXT, make_layers(TEXT))
        yield cache


def audits(database):
    with database.session() as session:
        return session.execute(select(CacheAudit.reason, CacheAudit.details)).all()


@pytest.mark.parametrize("column", ["key_payload", "value_payload", "key_digest", "value_digest"])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_flipped_bit_ends_the_prefix_before_it(database, cache, column, position):
    flip = f"""
        UPDATE arc_halo.kv_cache_payloads AS p SET {column} = set_bit({column}, 77, 1 - get_bit({column}, 77))
          FROM arc_halo.kv_cache AS b WHERE b.block_hash = p.block_hash AND b.position = {position} AND layer_index = 1
    """
    with database.session() as session, session.begin():
        session.execute(text(flip))
    layers, count = cache.restore(TEXT)
    assert count == position * BLOCK
    assert same(layers, make_layers(TEXT[:count]))
    (reason, details), *more = audits(database)
    assert (reason, details["layer"], more) == ("bad_payload", 1, [])
    assert cache.restore(TEXT)[1] == position * BLOCK
    assert len(audits(database)) == 1  # the damaged block is gone, with what followed it


def test_payloads_that_changed_places_are_not_served(database, cache):
    swap = """
        UPDATE arc_halo.kv_cache_payloads AS p
           SET key_payload = o.key_payload, value_payload = o.value_payload, key_digest = o.key_digest,
               value_digest = o.value_digest
          FROM arc_halo.kv_cache AS b, arc_halo.kv_cache_payloads AS o, arc_halo.kv_cache AS c
         WHERE b.block_hash = p.block_hash AND c.block_hash = o.block_hash AND o.layer_index = p.layer_index
           AND b.position = 0 AND c.position = 1
    """
    with database.session() as session, session.begin():
        session.execute(text(swap))
    assert cache.restore(TEXT)[1] == 0
    assert audits(database)[0][0] == "bad_payload"


def test_a_payload_that_is_gone_ends_the_prefix_before_it(database, cache):
    gone = """
        DELETE FROM arc_halo.kv_cache_payloads AS p USING arc_halo.kv_cache AS b
         WHERE b.block_hash = p.block_hash AND b.position = 1 AND layer_index = 0
    """
    with database.session() as session, session.begin():
        session.execute(text(gone))
    assert cache.restore(TEXT)[1] == BLOCK
    assert audits(database)[0][0] == "missing_payload"


def test_tokens_that_were_changed_in_the_table_are_not_served(database, cache):
    with database.session() as session, session.begin():
        block = session.scalars(select(KVCacheBlock).where(KVCacheBlock.position == 1)).one()
        block.token_ids = struct.pack(">4i", *TEXT[4:7], 999)
    assert cache.restore(TEXT)[1] == BLOCK + 0
    assert audits(database)[0][0] == "other_tokens"


@pytest.mark.parametrize("codec", ["blosc2-zstd", "int8-channel", "unheard-of"])
def test_a_payload_of_another_codec_is_not_served(database, cache, codec):
    with database.session() as session, session.begin():
        session.execute(text("UPDATE arc_halo.kv_cache_payloads SET codec = :codec"), {"codec": codec})
    assert cache.restore(TEXT)[1] == 0
    assert {reason for reason, _ in audits(database)} == {"bad_payload"}


def test_what_was_evicted_between_lookup_and_load_is_a_miss(database, cache):
    prefix = cache.lookup(TEXT)
    with database.session() as session, session.begin():
        session.delete(session.scalars(select(KVCacheBlock).where(KVCacheBlock.position == 1)).one())
    assert cache.load(prefix)[0][0].shape[1] == BLOCK


def test_what_was_retired_between_lookup_and_load_is_a_miss(database):
    with database.session() as session, session.begin():
        model = add_model(session, weights_digest=digest("served"))
    namespace = make_namespace(weights_digest=digest("served"), is_registered=True, model_id=model.id)
    with KVCache(database, namespace, LAYOUT) as cache:
        cache.store(TEXT, make_layers(TEXT))
        prefix = cache.lookup(TEXT)
        with database.session() as session, session.begin():
            session.execute(update(Model).values(status="archived"))
        assert cache.load(prefix)[0][0].shape[1] == 0
        assert cache.restore(TEXT)[1] == 0


def test_a_reader_whose_version_was_retired_takes_nothing_from_others(database):
    with database.session() as session, session.begin():
        ours, twin = (add_model(session, version=version, weights_digest=digest("served")) for version in "12")
    asks = {"weights_digest": digest("served"), "is_registered": True}
    with (
        KVCache(database, make_namespace(model_id=ours.id, **asks), LAYOUT) as cache,
        KVCache(database, make_namespace(model_id=twin.id, **asks), LAYOUT) as other,
    ):
        cache.store(TEXT, make_layers(TEXT), pinned=True)
        prefix = cache.lookup(TEXT)
        with database.session() as session, session.begin():
            session.execute(update(Model).where(Model.id == ours.id).values(status="archived"))
        assert cache.load(prefix)[0][0].shape[1] == 0
        assert other.restore(TEXT)[1] == len(TEXT)
    assert audits(database) == []


def test_a_block_that_was_stored_anew_is_not_deleted_for_the_one_before(database, cache):
    prefix = cache.lookup(TEXT)
    with database.session() as session, session.begin():
        session.execute(text("DELETE FROM arc_halo.kv_cache_payloads"))
    layers, faults = database.read(lambda session: load_prefix(session, cache.namespace, LAYOUT, prefix))
    assert (layers[0][0].shape[1], {each.reason for each in faults}) == (0, {"missing_payload"})
    with database.session() as session, session.begin():
        session.execute(text("DELETE FROM arc_halo.kv_cache"))
    cache.store(TEXT, make_layers(TEXT))
    cache._audit(prefix.namespace_id, [("missing_payload", {})], {each.block_hash: each.created_at for each in faults})
    assert audits(database) == [("missing_payload", {})]
    assert cache.restore(TEXT)[1] == len(TEXT)


def test_a_row_that_was_changed_makes_room_for_what_belongs_there(database, cache):
    with database.session() as session, session.begin():
        session.execute(update(KVCacheBlock).where(KVCacheBlock.position == 1).values(token_ids=bytes(16)))
    assert cache.restore(TEXT)[1] == BLOCK
    assert cache.store(TEXT, make_layers(TEXT)).token_count == len(TEXT)
    assert cache.restore(TEXT)[1] == len(TEXT)


def test_a_namespace_is_named_by_each_of_its_parts():
    parts = [
        make_namespace(),
        make_namespace(adapter_digest=digest("x")),
        make_namespace(tokenizer_digest=digest("x")),
        make_namespace(salt=b"x"),
        make_namespace(dtype="F3", layout="2" + str(LAYOUT)),
        make_namespace(block_token_count=BLOCK * 2),
    ]
    assert len({each.digest for each in parts}) == len(parts)
    assert isinstance(parts[0], Namespace)

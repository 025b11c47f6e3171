"""Why a row of tokens hits or misses is told block by block."""

import datetime as dt

import pytest
from sqlalchemy import delete, func, update

from arc_halo.errors import CacheError, ModelNotFound, WeightsNotFinal
from arc_halo.inference.kv import KVLayout, LayerShape, find_prefix, store_prefix
from arc_halo.inference.kv.explaining import explain_prefix
from arc_halo.inference.kv.keeping import pin_prefix
from arc_halo.schema import KVCacheBlock, KVCachePayload
from tests.inference.kv import LAYOUT, make_layers, make_namespace
from tests.schema.rows import add_model, digest

TEXT = list(range(100, 111))  # two whole blocks of four, and three tokens


@pytest.fixture(autouse=True)
def model(session):
    found = add_model(session, "m", weights_digest=digest("weights"))
    session.flush()
    return found


def store(session, tokens, **options):
    namespace = make_namespace(is_registered=True)
    store_prefix(session, namespace, tokens, make_layers(tokens), **options)
    return namespace


def explained(session, tokens):
    (only,) = explain_prefix(session, "m", tokens)
    return only


def expire(session, position):
    past = func.now() - dt.timedelta(seconds=1)
    session.execute(update(KVCacheBlock).where(KVCacheBlock.position >= position).values(expires_at=past))


def used(prefix):
    return [block.used_token_count for block in prefix.blocks]


def stored(prefix):
    return [block.stored is not None for block in prefix.blocks]


@pytest.mark.parametrize("count", range(1, len(TEXT) + 1))
def test_what_is_stored_is_complete(session, count):
    store(session, TEXT)
    prefix = explained(session, TEXT[:count])
    assert (prefix.hit_token_count, prefix.end) == (count, "complete")
    assert sum(used(prefix)) == sum(block.token_count for block in prefix.blocks) == count


@pytest.mark.parametrize("shared", range(len(TEXT) + 1))
def test_it_hits_as_a_lookup_does(session, shared):
    namespace = store(session, TEXT)
    asked = [*TEXT[:shared], 7, 8, 9, 10, 11]
    prefix = explained(session, asked)
    assert prefix.hit_token_count == find_prefix(session, namespace, asked).token_count == shared
    assert prefix.end == ("other_tokens" if shared < len(TEXT) else "nothing_after")
    assert sum(used(prefix)) == shared
    assert [block.first_token for block in prefix.blocks] == list(range(0, len(asked), 4))


def test_nothing_is_stored_behind_a_whole_block(session):
    store(session, TEXT[:8])
    prefix = explained(session, TEXT)
    assert (used(prefix), stored(prefix), prefix.end) == ([4, 4, 0], [True, True, False], "nothing_after")


def test_a_block_says_how_it_is_kept(session):
    namespace = store(session, TEXT[:4])
    pin_prefix(session, namespace, TEXT[:4])
    store(session, TEXT, logged=False, ttl=60)
    first, second, _ = (block.stored for block in explained(session, TEXT).blocks)
    assert (first.is_pinned, first.is_logged, first.expires_at, first.hit_count) == (True, True, None, 0)
    assert (second.is_pinned, second.is_logged, second.is_expired) == (False, False, False)
    assert second.expires_at is not None
    assert second.stored_nbytes == 4 * LAYOUT.token_nbytes


@pytest.mark.parametrize("position", range(3))
def test_what_is_expired_ends_it(session, position):
    store(session, TEXT)
    expire(session, position)
    prefix = explained(session, [*TEXT[:10], 7])
    assert (prefix.hit_token_count, prefix.end) == (4 * position, "expired")
    assert prefix.blocks[position].stored.is_expired
    assert used(prefix)[position:] == [0] * (3 - position)


def test_what_is_pinned_does_not_expire(session):
    pin_prefix(session, store(session, TEXT), TEXT)
    expire(session, 0)
    assert explained(session, TEXT).end == "complete"


@pytest.mark.parametrize("asked", [TEXT, TEXT[:10]])
def test_unlogged_payloads_that_a_crash_took_end_it(session, asked):
    store(session, TEXT)
    last = KVCacheBlock.position == 2
    of_last = KVCachePayload.block_hash.in_(session.query(KVCacheBlock.block_hash).where(last))
    session.execute(delete(KVCachePayload).where(of_last))
    prefix = explained(session, asked)
    assert (used(prefix), stored(prefix), prefix.end) == ([4, 4, 0], [True] * 3, "payloads_gone")


def test_a_row_that_was_changed_ends_it(session):
    store(session, TEXT)
    session.execute(update(KVCacheBlock).where(KVCacheBlock.position == 1).values(token_ids=bytes(16)))
    prefix = explained(session, TEXT)
    assert (used(prefix), prefix.end) == ([4, 0, 0], "damaged")


def test_of_an_archived_version_all_is_retired(session, model):
    store(session, TEXT)
    model.status = "archived"
    session.flush()
    prefix = explained(session, TEXT)
    assert (used(prefix), stored(prefix), prefix.end) == ([0, 0, 0], [True] * 3, "retired")


def test_each_namespace_of_the_weights_is_told_of(session):
    store(session, TEXT)
    other = make_namespace(is_registered=True, config_digest=digest("other config"), block_token_count=8)
    store_prefix(session, other, TEXT[:9], make_layers(TEXT[:9]))
    elsewhere = make_namespace(weights_digest=digest("other weights"))
    store_prefix(session, elsewhere, TEXT, make_layers(TEXT))
    first, second = explain_prefix(session, "m", TEXT)
    assert (used(first), used(second)) == ([4, 4, 3], [8, 1])
    assert second.end == "nothing_after"


def test_no_tokens_are_complete(session):
    store(session, TEXT)
    assert (explained(session, []).end, explained(session, []).blocks) == ("complete", ())


def test_where_there_is_nothing_to_explain(session):
    assert explain_prefix(session, "m", TEXT) == []
    with pytest.raises(ModelNotFound, match="no model 'n'"):
        explain_prefix(session, "n", TEXT)
    with pytest.raises(CacheError, match="token ids"):
        explain_prefix(session, "m", [-1])
    add_model(session, "n")
    with pytest.raises(WeightsNotFinal, match="n@1"):
        explain_prefix(session, "n", TEXT)


def test_a_layout_is_read_back():
    mixed = KVLayout((LayerShape(2, 4, 4), LayerShape(2, 4, 4), LayerShape(1, 64, 32)), "BF16")
    assert KVLayout.parse(str(mixed), "BF16") == mixed
    assert KVLayout.parse(str(LAYOUT), "F32") == LAYOUT
    with pytest.raises(CacheError, match="no layout"):
        KVLayout.parse("batch,tokens", "F32")
    with pytest.raises(CacheError, match="no layout"):
        KVLayout.parse(f"{LAYOUT} and more", "F32")

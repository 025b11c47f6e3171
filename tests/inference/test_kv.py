"""Keys and values: what is found is what was stored, as far as the tokens are the same."""

import numpy as np
import psycopg
import pytest
from sqlalchemy import func, select

from arc_halo.errors import CacheError
from arc_halo.inference.kv import find_prefix, load_prefix, store_prefix
from arc_halo.schema import KVCacheBlock, KVCachePayload, KVCacheUnloggedPayload
from tests.inference.kv import LAYOUT, make_layers, make_namespace, same

TEXT = list(range(100, 111))  # two whole blocks, and three tokens


def store(session, tokens, namespace=None, **options):
    namespace = namespace or make_namespace()
    return store_prefix(session, namespace, tokens, make_layers(tokens), **options)


def restore(session, tokens, namespace=None):
    namespace = namespace or make_namespace()
    prefix = find_prefix(session, namespace, tokens)
    layers, faults = load_prefix(session, namespace, LAYOUT, prefix) if prefix else (LAYOUT.empty(0), [])
    assert not faults
    return prefix.token_count, layers


@pytest.mark.parametrize("count", range(1, len(TEXT) + 1))
def test_every_prefix_of_what_is_stored_is_found(session, count):
    store(session, TEXT)
    hit, layers = restore(session, TEXT[:count])
    assert hit == count
    assert same(layers, make_layers(TEXT[:count]))


@pytest.mark.parametrize("shared", range(len(TEXT) + 1))
def test_what_is_shared_is_found_to_the_token(session, shared):
    store(session, TEXT)
    asked = [*TEXT[:shared], 7, 8, 9]
    hit, layers = restore(session, asked)
    assert hit == shared
    assert same(layers, make_layers(TEXT[:shared]))


def test_the_longest_of_several_branches_is_found(session):
    for tail in ([1, 2, 3], [1, 2, 9, 9], [1, 5], [2, 2, 2, 2, 2]):
        store(session, TEXT[:8] + tail)
    assert [restore(session, TEXT[:8] + asked)[0] for asked in ([1, 2, 3, 4], [1, 2, 9], [1, 5, 5], [3], [2] * 6)] == [
        11,
        11,
        10,
        8,
        13,
    ]


def test_nothing_is_written_twice(session):
    first, again = store(session, TEXT), store(session, TEXT)
    assert (first.token_count, first.new_token_count) == (11, 11)
    assert (again.token_count, again.new_token_count, again.stored_nbytes) == (11, 0, 0)
    longer = store(session, [*TEXT[:8], 3, 3, 3, 3])
    assert (longer.token_count, longer.new_token_count) == (12, 4)


def test_a_part_that_became_longer_is_stored_once(session):
    store(session, TEXT[:9])
    store(session, TEXT[:10])
    store(session, TEXT[:9])  # is the beginning of what is there
    tokens = session.scalars(select(func.arc_halo.token_ids(KVCacheBlock.token_ids)).order_by(KVCacheBlock.position))
    assert list(tokens) == [TEXT[:4], TEXT[4:8], TEXT[8:10]]
    pinned = store(session, [*TEXT[:8], 50], pinned=True)
    store(session, [*TEXT[:8], 50, 51])
    assert pinned.new_token_count == 1
    assert session.scalar(select(func.count()).select_from(KVCacheBlock)) == 5


@pytest.mark.parametrize(("logged", "table"), [(True, KVCachePayload), (False, KVCacheUnloggedPayload)])
def test_payloads_are_in_the_table_that_was_chosen(session, logged, table):
    store(session, TEXT, logged=logged)
    assert session.scalar(select(func.count()).select_from(table)) == 6
    assert restore(session, TEXT)[0] == 11


def test_a_prefix_may_be_in_both_tables(session):
    store(session, TEXT[:8], logged=False)
    store(session, TEXT)
    hit, layers = restore(session, TEXT)
    assert hit == 11
    assert same(layers, make_layers(TEXT))


def test_skipping_what_was_found_stores_the_rest(session):
    store(session, TEXT[:8])
    stored = store(session, TEXT, skip=8)
    assert (stored.token_count, stored.new_token_count) == (11, 3)
    assert same(restore(session, TEXT)[1], make_layers(TEXT))


def test_what_was_skipped_and_is_gone_ends_the_prefix(session):
    stored = store(session, TEXT, skip=8)
    assert (stored.token_count, stored.new_token_count) == (0, 0)
    assert restore(session, TEXT)[0] == 0


@pytest.mark.parametrize("codec", ["none", "lossless"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_lossless_codecs_give_back_every_bit(session, codec, dtype):
    layout = type(LAYOUT)(LAYOUT.layers, dtype)
    layers = [tuple(array.astype(layout.numpy) for array in pair) for pair in make_layers(TEXT)]
    layers[0][0][0, 0, 0] = np.nan
    namespace = make_namespace(dtype=dtype)
    store_prefix(session, namespace, TEXT, layers, codec=codec)
    found, faults = load_prefix(session, namespace, layout, find_prefix(session, namespace, TEXT))
    assert not faults
    assert same(found, layers)


def test_eight_bits_for_each_channel_are_within_half_a_step(session):
    namespace = make_namespace(precision="int8")
    layers = make_layers(TEXT)
    layers[1][0][:, :, 0] = 0
    store_prefix(session, namespace, TEXT, layers, codec="int8")
    found, faults = load_prefix(session, namespace, LAYOUT, find_prefix(session, namespace, TEXT))
    assert not faults
    for pair, other in zip(layers, found, strict=True):
        for exact, rounded in zip(pair, other, strict=True):
            step = np.abs(exact).max(axis=1, keepdims=True) / 127
            assert (np.abs(exact - rounded) <= step * 0.5001).all()


@pytest.mark.parametrize(
    ("changes", "options"),
    [({}, {"codec": "int8"}), ({"precision": "int8"}, {}), ({}, {"codec": "zip"}), ({}, {"ttl": 0}), ({}, {"ttl": -1})],
)
def test_what_does_not_fit_is_refused(session, changes, options):
    with pytest.raises(CacheError):
        store(session, TEXT, make_namespace(**changes), **options)


def test_layers_must_be_those_of_the_namespace(session):
    layers = make_layers(TEXT)
    for wrong in (layers[:1], [(keys[:, :5], values) for keys, values in layers], [(k[:1], v) for k, v in layers]):
        with pytest.raises(CacheError):
            store_prefix(session, make_namespace(), TEXT, wrong)


@pytest.mark.parametrize("tokens", [[-1], [2**31], [0.5], [[1, 2]], ["a"]])
def test_tokens_must_be_token_ids(session, tokens):
    with pytest.raises(CacheError):
        find_prefix(session, make_namespace(), tokens)


def test_no_tokens_are_no_prefix(session):
    store(session, TEXT)
    assert not find_prefix(session, make_namespace(), [])
    assert store(session, []).token_count == 0


def test_a_lookup_is_one_statement(session, monkeypatch):
    store(session, TEXT)
    sent = []
    execute = psycopg.Cursor.execute
    monkeypatch.setattr(
        psycopg.Cursor, "execute", lambda self, *rest, **more: (sent.append(rest), execute(self, *rest, **more))[1]
    )
    assert find_prefix(session, make_namespace(), TEXT).token_count == len(TEXT)
    assert len(sent) == 1

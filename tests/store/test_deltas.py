from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from sqlalchemy import text

from arc_halo.errors import CorruptChunk, MissingChunk
from arc_halo.store import ArraySource, Wanted, put_tensors
from arc_halo.store.connections import Reading
from arc_halo.store.get import Part, iter_results, load_manifests
from arc_halo.store.relatives import find_relatives
from tests.fixtures.tensors import chunk_digests, counts, fetched_chunks, get, put, rows, same, trained, weights

BF16 = ml_dtypes.bfloat16
DELTAS = text("SELECT count(*) FROM arc_halo.tensor_data WHERE base_digest IS NOT NULL")
DEPTH = text(
    "SELECT max(d.depth) FROM arc_halo.tensor_data AS d JOIN arc_halo.tensor_chunks AS c USING (tenant_id, digest)"
    " WHERE c.tensor_id = :id"
)
STORED = text(
    "SELECT sum(d.stored_nbytes) FROM arc_halo.tensor_data AS d JOIN arc_halo.tensor_chunks AS c"
    " USING (tenant_id, digest) WHERE c.tensor_id = :id"
)


def put_on(session, base, array, compression="balanced"):
    """Store an array as a delta of a stored tensor, where that is smaller."""
    source = ArraySource("t", array)
    (tensor_id,) = put_tensors(session, [source], compression=compression, choose_bases=lambda _: {"t": base.tensor_id})
    return Wanted("t", tensor_id, source.nbytes)


def depth(session, wanted):
    return session.scalar(DEPTH, {"id": wanted.tensor_id})


def stored(session, wanted):
    return session.scalar(STORED, {"id": wanted.tensor_id})


@pytest.mark.parametrize("dtype", [BF16, np.float32, np.float16, np.float64], ids=str)
@pytest.mark.parametrize("compression", ["fast", "balanced", "dense"])
def test_a_trained_tensor_is_a_small_delta_of_what_it_was(session, dtype, compression):
    before = weights((900, 700), dtype=dtype)
    after = trained(before)
    (base,) = put(session, before, compression=compression)
    wanted = put_on(session, base, after, compression)
    assert depth(session, wanted) == 1
    assert stored(session, wanted) < 0.9 * stored(session, base)
    assert same(get(session, wanted), after)


def test_no_compression_makes_no_deltas(session):
    (base,) = put(session, weights((900, 700)))
    assert depth(session, put_on(session, base, trained(weights((900, 700))), "none")) == 0


@pytest.mark.parametrize(("compression", "deepest"), [("fast", 1), ("balanced", 2), ("dense", 8)])
def test_deltas_lean_no_deeper_than_the_policy_allows(session, compression, deepest):
    array = weights((300, 300), dtype=BF16)
    (wanted,) = put(session, array, compression=compression)
    depths = []
    for seed in range(10):
        array = trained(array, seed=seed + 1)
        wanted = put_on(session, wanted, array, compression)
        depths.append(depth(session, wanted))
        assert same(get(session, wanted), array)
    assert depths == [min(made, deepest) for made in range(1, 11)]


def test_a_base_of_a_forged_type_is_not_leaned_on(session):
    array = weights((300, 300), dtype=BF16)
    (base,) = put(session, array)
    deeper = put_on(session, base, trained(array))
    session.execute(text("UPDATE arc_halo.tensor_data SET dtype = 'F99' WHERE base_digest IS NULL"))
    assert depth(session, put_on(session, deeper, trained(array, seed=8), "fast")) == 0


def test_a_small_chunk_does_not_bring_a_big_one(session):
    array = weights((300, 1024))
    (base,) = put(session, array)
    assert depth(session, put_on(session, base, trained(array[:4]))) == 0
    assert depth(session, put_on(session, base, trained(array[:80]))) == 1


def test_rows_of_a_delta_bring_their_chunks_and_what_those_lean_on(session):
    before = weights((8192, 1024))
    after = trained(before)
    (base,) = put(session, before)
    wanted = put_on(session, base, after)
    with fetched_chunks(session) as fetched:
        assert same(rows(session, wanted, slice(4000, 4010)), after[4000:4010])
    assert fetched == [2]


@pytest.mark.parametrize(("payloads_nbytes", "brought"), [(8 << 20, [8]), (1, [2, 2, 2, 2])])
def test_chains_are_fetched_as_far_as_their_payloads_fit_into_a_window(session, monkeypatch, payloads_nbytes, brought):
    monkeypatch.setattr("arc_halo.store.get.PAYLOADS_NBYTES", payloads_nbytes)
    before = weights((1024, 1024))
    after = trained(before)
    (base,) = put(session, before)
    wanted = put_on(session, base, after)
    with fetched_chunks(session) as fetched:
        assert same(get(session, wanted), after)
    assert fetched == brought


def test_each_chunk_that_is_gone_is_told_of_whatever_fits(session, monkeypatch):
    monkeypatch.setattr("arc_halo.store.get.PAYLOADS_NBYTES", 1)
    (wanted,) = put(session, weights((1024, 1024)))
    digests = chunk_digests(session, wanted)
    session.execute(text("SET LOCAL session_replication_role = replica"))  # foreign keys would keep them
    for gone in (1, 3):
        session.execute(text("DELETE FROM arc_halo.tensor_data WHERE digest = :digest"), {"digest": digests[gone]})
    connect = Reading(session)
    (manifest,) = load_manifests(connect, [wanted])
    results = list(iter_results(connect, [Part(manifest, range(4))]))
    assert [isinstance(result, MissingChunk) for result in results] == [False, True, False, True]


@pytest.mark.parametrize("grown", [1, 700, 5000])
def test_a_vocabulary_that_grew_and_was_trained_leans_on_the_smaller(session, grown):
    before = weights((5000, 384), dtype=BF16)
    after = np.concatenate([trained(before), weights((grown, 384), seed=3, dtype=BF16)])
    (base,) = put(session, before)
    wanted = put_on(session, base, after)
    assert same(get(session, wanted), after)
    alone = stored(session, put(session, after[:, ::-1])[0])
    assert stored(session, wanted) < alone - 0.3 * before.nbytes


def test_a_vocabulary_that_shrank_leans_too(session):
    before = weights((5000, 384), dtype=BF16)
    after = trained(before)[:3000]
    (base,) = put(session, before)
    wanted = put_on(session, base, after)
    assert depth(session, wanted) == 1
    assert same(get(session, wanted), after)


def test_bfloat16_of_a_stored_float32_costs_next_to_nothing(session):
    whole = weights((3000, 768))
    half = whole.astype(BF16)
    (base,) = put(session, whole)
    wanted = put_on(session, base, half)
    assert stored(session, wanted) < 1000
    assert same(get(session, wanted), half)
    assert same(rows(session, wanted, slice(-5, None)), half[-5:])


def test_float32_of_a_stored_bfloat16_saves_its_upper_half(session):
    whole = weights((3000, 768))
    (base,) = put(session, whole.astype(BF16))
    wanted = put_on(session, base, whole)
    assert stored(session, wanted) < 0.55 * whole.nbytes
    assert same(get(session, wanted), whole)


@pytest.mark.parametrize(
    "other", [weights((300, 301)), weights((90_000,)), weights((300, 300)).astype(np.int32), weights((1, 300, 300))]
)
def test_a_base_of_another_shape_or_type_is_left_alone(session, other):
    (base,) = put(session, weights((300, 300)))
    wanted = put_on(session, base, other)
    assert depth(session, wanted) == 0
    assert same(get(session, wanted), other)


def test_chunks_that_did_not_change_are_shared_and_zeros_lean_on_nothing(session):
    before = weights((4096, 1024))
    after = before.copy()
    after[:1024] = 0
    after[2048:2100] = trained(after[2048:2100])
    (base,) = put(session, before)
    _, _, chunks = counts(session)
    wanted = put_on(session, base, after)
    assert counts(session)[2] == chunks + 2  # one of zeros, one that changed
    assert same(get(session, wanted), after)
    assert session.scalar(DELTAS) == 1


def test_a_damaged_base_is_not_leaned_on(session):
    before = weights((300, 300))
    (base,) = put(session, before)
    session.execute(text("UPDATE arc_halo.tensor_data SET payload_checksum = payload_checksum + 1"))
    wanted = put_on(session, base, trained(before))
    assert depth(session, wanted) == 0
    assert same(get(session, wanted), trained(before))


def test_a_base_that_was_damaged_since_is_named(session):
    before = weights((300, 300))
    (base,) = put(session, before)
    wanted = put_on(session, base, trained(before))
    session.execute(text("UPDATE arc_halo.tensor_data SET payload_checksum = 1 WHERE base_digest IS NULL"))
    with pytest.raises(CorruptChunk, match="which leans on"):
        get(session, wanted)


def test_deltas_forged_into_a_circle_are_an_error(session):
    (base,) = put(session, weights((300, 300)))
    wanted = put_on(session, base, trained(weights((300, 300))))
    session.execute(text("SET LOCAL session_replication_role TO replica"))  # no foreign keys
    session.execute(text("UPDATE arc_halo.tensor_data SET base_digest = digest, base_depth = 7, codec = 'pco-delta'"))
    with pytest.raises(CorruptChunk, match="another depth"):
        get(session, wanted)


def relatives(session, *arrays):
    return find_relatives(session, [ArraySource(f"t{index}", array) for index, array in enumerate(arrays)])


def test_the_nearest_relative_is_found_among_strangers(session):
    family = [weights((300, 300), seed) for seed in range(4)]
    stored_tensors = put(session, *family, weights((300, 301), 9), np.ones((300, 300), np.float32))
    found = relatives(session, trained(family[2]), trained(family[0]).astype(BF16), weights((300, 300), 77))
    assert found == {"t0": stored_tensors[2].tensor_id, "t1": stored_tensors[0].tensor_id}


def test_relatives_of_a_grown_vocabulary_are_found_and_small_tensors_have_none(session):
    before = weights((3000, 64))
    (base, _) = put(session, before, weights((30, 64)))
    grown = np.concatenate([trained(before), weights((40, 64), 5)])
    assert relatives(session, grown, trained(weights((30, 64)))) == {"t0": base.tensor_id}
    assert relatives(session, np.zeros((3000, 64), np.float32), np.arange(30_000)) == {}


def test_a_search_for_relatives_leaves_the_caller_its_settings(session):
    session.execute(text("SET LOCAL hnsw.iterative_scan TO relaxed_order"))
    put(session, weights((300, 300)))
    assert relatives(session, trained(weights((300, 300))))
    assert session.scalar(text("SELECT current_setting('hnsw.iterative_scan')")) == "relaxed_order"

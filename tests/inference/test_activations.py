"""Activations come back bit for bit or not at all, within a quota."""

from __future__ import annotations

import datetime as dt
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text

from arc_halo.errors import CacheError, TensorError
from arc_halo.inference.activations import find_activations, get_activations, input_digest, put_activations
from arc_halo.inference.namespaces import Namespace
from arc_halo.registry import create_model
from arc_halo.schema import CacheAudit, CachedActivation, CacheQuota
from arc_halo.store import prune
from tests.fixtures.tensors import arrays, count, same, weights

NAMESPACE = Namespace("activation", blake3(b"weights").digest(), blake3(b"config").digest(), "F32", "batch,token,width")
INPUTS = {"input_ids": np.arange(6).reshape(1, 6)}
DIGEST = input_digest(INPUTS)
POINT = "layers.3"
OUTPUT = weights((1, 6, 8))
OTHER = blake3(b"other").digest()


def put(session, number=0, namespace=NAMESPACE, **options):
    """One kibibyte under an input of that number."""
    digest = input_digest({"n": np.array(number)})
    return put_activations(session, namespace, digest, {POINT: weights((256,), number)}, **options)


def stored(session):
    """The numbers that are there."""
    digests = {input_digest({"n": np.array(number)}): number for number in range(20)}
    return sorted(digests[digest] for digest in session.scalars(select(CachedActivation.input_digest)))


def limit(session, nbytes):
    session.merge(CacheQuota(tenant_id=0, kind="activation", max_nbytes=nbytes))
    session.flush()


@given(arrays(), arrays())
@settings(deadline=None)
def test_arrays_have_one_digest_exactly_if_they_are_the_same(left, right):
    little = left.astype(left.dtype.newbyteorder("<"))
    assert (input_digest({"x": left}) == input_digest({"x": right})) == same(little, right)
    assert input_digest({"x": left}) != input_digest({"y": left})
    assert input_digest({"x": left}) != input_digest({"x": left[None]})


@given(st.dictionaries(st.text(max_size=3), st.binary(max_size=6), min_size=1, max_size=4), st.randoms())
def test_names_and_bytes_cannot_be_taken_for_others(inputs, random):
    as_arrays = {name: np.frombuffer(raw, np.uint8) for name, raw in inputs.items()}
    shuffled = list(as_arrays.items())
    random.shuffle(shuffled)
    assert input_digest(dict(shuffled)) == input_digest(as_arrays)
    (name, raw), *_ = shuffled
    for changed in ({f"{name}a": raw}, {name: np.append(raw, raw.dtype.type(0))}, {name: raw.view(np.int8)}):
        assert input_digest({key: each for key, each in as_arrays.items() if key != name} | changed) != input_digest(
            as_arrays
        )


def test_the_digest_of_inputs_is_part_of_the_format():
    inputs = {"input_ids": np.array([[1, 2]], np.int64), "mask": np.array([True])}
    assert input_digest(inputs).hex() == "3f275434a6244262db7ba591faefdf3c466e42445011d9a2d81d315c45bb9d59"


@pytest.mark.parametrize(("inputs", "error"), [({}, CacheError), ({"x": [1]}, TensorError)])
def test_inputs_must_be_arrays(inputs, error):
    with pytest.raises(error):
        input_digest(inputs)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.int64, bool])
def test_outputs_come_back_bit_for_bit(session, dtype):
    outputs = {
        "a": np.arange(24).reshape(2, 3, 4).astype(dtype).T,
        "b": np.zeros((0, 3), dtype),
        "c": np.array(1, dtype),
    }
    assert put_activations(session, NAMESPACE, DIGEST, outputs)
    found = get_activations(session, NAMESPACE, ["c", "a", "b"], DIGEST)
    assert list(found) == ["c", "a", "b"]
    assert all(same(found[name], outputs[name]) for name in outputs)


def test_more_than_a_transaction_holds_comes_back(database):
    output = weights((3 << 20, 4))
    assert database.transaction(lambda session: put_activations(session, NAMESPACE, DIGEST, {POINT: output}))
    with database.session() as session:
        assert same(get_activations(session, NAMESPACE, [POINT], DIGEST)[POINT], output)


@pytest.mark.parametrize(
    "changed",
    [
        {"weights_digest": OTHER}, {"config_digest": OTHER}, {"adapter_digest": OTHER}, {"tokenizer_digest": OTHER},
        {"dtype": "BF16"}, {"layout": "token,batch,width"}, {"salt": b"another tenant's"}, {"is_registered": True},
        {"tenant_id": 0, "precision": "int8"},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_another_namespace_is_a_miss(session, changed):
    put_activations(session, NAMESPACE, DIGEST, {POINT: OUTPUT})
    assert get_activations(session, replace(NAMESPACE, **changed), [POINT], DIGEST) is None
    assert get_activations(session, NAMESPACE, [POINT], DIGEST) is not None


def test_other_inputs_and_other_hook_points_are_misses(session):
    put_activations(session, NAMESPACE, DIGEST, {POINT: OUTPUT})
    assert get_activations(session, NAMESPACE, [POINT], input_digest({"input_ids": INPUTS["input_ids"] + 1})) is None
    assert get_activations(session, NAMESPACE, ["layers.4"], DIGEST) is None
    assert get_activations(session, NAMESPACE, [POINT, "layers.4"], DIGEST) is None
    assert list(find_activations(session, NAMESPACE, [POINT, "layers.4"], DIGEST)) == [POINT]


def test_an_expired_entry_is_a_miss_before_it_is_swept(session):
    put_activations(session, NAMESPACE, DIGEST, {POINT: OUTPUT}, ttl=dt.timedelta(hours=1))
    assert get_activations(session, NAMESPACE, [POINT], DIGEST) is not None
    session.execute(text("UPDATE arc_halo.activation_cache SET expires_at = now()"))
    assert get_activations(session, NAMESPACE, [POINT], DIGEST) is None
    assert count(session, "activation_cache") == 1
    put_activations(session, NAMESPACE, DIGEST, {POINT: OUTPUT})
    assert find_activations(session, NAMESPACE, [POINT], DIGEST)[POINT].expires_at is None


def test_what_is_pinned_does_not_expire(session):
    put_activations(session, NAMESPACE, DIGEST, {POINT: OUTPUT}, ttl=1, pinned=True)
    session.execute(text("UPDATE arc_halo.activation_cache SET expires_at = now()"))
    assert get_activations(session, NAMESPACE, [POINT], DIGEST) is not None


@pytest.mark.parametrize(
    "ttl", [0, -1, float("nan"), float("inf"), 10**400, dt.timedelta(0), dt.timedelta(seconds=-1), True, "1"]
)
def test_a_ttl_must_be_a_time(session, ttl):
    with pytest.raises(CacheError, match="ttl"):
        put_activations(session, NAMESPACE, DIGEST, {POINT: OUTPUT}, ttl=ttl)


@pytest.mark.parametrize(
    ("namespace", "digest", "outputs", "options"),
    [
        (replace(NAMESPACE, kind="response"), DIGEST, {POINT: OUTPUT}, {}),
        (replace(NAMESPACE, tenant_id=1), DIGEST, {POINT: OUTPUT}, {}),
        (NAMESPACE, b"short", {POINT: OUTPUT}, {}),
        (NAMESPACE, DIGEST, {}, {}),
        (NAMESPACE, DIGEST, {"": OUTPUT}, {}),
        (NAMESPACE, DIGEST, {"a\0": OUTPUT}, {}),
        (NAMESPACE, DIGEST, {"a" * 513: OUTPUT}, {}),
        (NAMESPACE, DIGEST, {POINT: OUTPUT}, {"recompute_ms": float("nan")}),
        (NAMESPACE, DIGEST, {POINT: OUTPUT}, {"recompute_ms": -1.0}),
    ],
)
def test_what_could_not_be_a_key_is_refused(session, namespace, digest, outputs, options):
    with pytest.raises(CacheError):
        put_activations(session, namespace, digest, outputs, **options)
    assert count(session, "activation_cache") == 0


def test_nothing_of_a_retired_model_is_served_or_stored(session):
    model = create_model(session, "m", {}, {"w": weights((4, 4))})
    other = create_model(session, "n", {}, {"w": weights((4, 4))})
    namespace = replace(NAMESPACE, weights_digest=model.weights_digest, is_registered=True)
    mine = replace(namespace, model_id=model.id)
    assert put_activations(session, mine, DIGEST, {POINT: OUTPUT})
    model.status = "archived"
    session.flush()
    assert get_activations(session, mine, [POINT], DIGEST) is None
    assert get_activations(session, replace(namespace, model_id=other.id), [POINT], DIGEST) is not None
    assert not put_activations(session, mine, DIGEST, {POINT: OUTPUT})
    other.status = "archived"
    session.flush()
    assert get_activations(session, namespace, [POINT], DIGEST) is None


def damage(session, statement="payload = set_bit(payload, 77, 1 - get_bit(payload, 77))", digest="digest"):
    session.execute(text(f"UPDATE arc_halo.tensor_data SET {statement} WHERE {digest} = digest"))


def test_a_flipped_bit_is_a_miss_with_an_audit(session):
    put_activations(session, NAMESPACE, DIGEST, {POINT: OUTPUT, "sound": weights((4,), 2)})
    chunk = blake3(OUTPUT.tobytes()).digest()
    damage(session, digest=f"'\\x{chunk.hex()}'")
    assert get_activations(session, NAMESPACE, [POINT], DIGEST) is None
    audit = session.scalars(select(CacheAudit)).one()
    assert (audit.kind, audit.reason, audit.details["hook_point"]) == ("activation", "bad_payload", POINT)
    assert audit.details["input_digest"] == DIGEST.hex()
    assert get_activations(session, NAMESPACE, ["sound"], DIGEST) is not None


def test_a_payload_that_is_gone_is_a_miss_with_an_audit(session):
    put_activations(session, NAMESPACE, DIGEST, {POINT: OUTPUT})
    session.execute(text("SET session_replication_role = replica"))
    session.execute(text("DELETE FROM arc_halo.tensor_data"))
    assert get_activations(session, NAMESPACE, [POINT], DIGEST) is None
    assert session.scalars(select(CacheAudit.reason)).all() == ["missing_payload"]


@pytest.mark.parametrize("column", ["digest", "seal"])
def test_a_changed_row_of_a_tensor_is_a_miss(session, column):
    put_activations(session, NAMESPACE, DIGEST, {POINT: OUTPUT})
    session.execute(
        text(f"UPDATE arc_halo.tensor_metadata SET {column} = set_bit({column}, 3, 1 - get_bit({column}, 3))")
    )
    assert get_activations(session, NAMESPACE, [POINT], DIGEST) is None
    assert session.scalars(select(CacheAudit.reason)).all() == ["bad_payload"]


def test_a_reader_that_may_not_write_has_a_miss_all_the_same(database):
    database.transaction(lambda session: put_activations(session, NAMESPACE, DIGEST, {POINT: OUTPUT}))
    database.transaction(damage)
    with database.session() as session:
        session.execute(text("SET TRANSACTION READ ONLY"))
        assert get_activations(session, NAMESPACE, [POINT], DIGEST) is None
        assert session.scalar(text("SELECT 1")) == 1


def test_a_later_result_replaces_an_earlier_one(session):
    put_activations(session, NAMESPACE, DIGEST, {POINT: OUTPUT}, recompute_ms=5)
    put_activations(session, NAMESPACE, DIGEST, {POINT: OUTPUT + 1})
    assert same(get_activations(session, NAMESPACE, [POINT], DIGEST)[POINT], OUTPUT + 1)
    assert find_activations(session, NAMESPACE, [POINT], DIGEST)[POINT].recompute_ms == 5


def test_the_least_recently_used_go_first(database):
    database.transaction(lambda session: limit(session, 3 << 10))
    for number in range(3):
        assert database.transaction(lambda session, number=number: put(session, number))
    used = "UPDATE arc_halo.activation_cache SET last_hit_at = now(), hit_count = 1 WHERE input_digest = :digest"
    first = {"digest": input_digest({"n": np.array(0)})}
    database.transaction(lambda session: session.execute(text(used), first) and None)
    assert database.transaction(lambda session: put(session, 3))
    with database.session() as session:
        assert stored(session) == [0, 2, 3]


def test_what_is_expired_goes_before_what_is_not(database):
    database.transaction(lambda session: limit(session, 2 << 10))
    database.transaction(lambda session: put(session, 0))
    database.transaction(lambda session: put(session, 1, ttl=3600))
    database.transaction(
        lambda session: (
            session.execute(
                text("UPDATE arc_halo.activation_cache SET expires_at = now() WHERE expires_at IS NOT NULL")
            )
            and None
        )
    )
    database.transaction(lambda session: put(session, 2))
    with database.session() as session:
        assert stored(session) == [0, 2]


def test_what_is_pinned_stays_and_what_does_not_fit_is_not_stored(session):
    limit(session, 2 << 10)
    assert put(session, 0, pinned=True)
    assert put(session, 1)
    assert put(session, 2)
    assert stored(session) == [0, 2]
    too_much = {"a": weights((256,), 8), "b": weights((256,), 9)}
    assert not put_activations(session, NAMESPACE, DIGEST, too_much)
    assert stored(session) == [0, 2]


def test_a_pin_that_comes_while_room_is_made_is_kept(database):
    with database.session() as session, session.begin():
        limit(session, 1 << 10)
        put(session, 0)
    with database.session() as session, ThreadPoolExecutor(1) as pool:
        session.execute(text("UPDATE arc_halo.activation_cache SET is_pinned = true"))
        putting = pool.submit(database.transaction, lambda other: put(other, 1))
        time.sleep(0.5)
        session.commit()
        assert not putting.result()
        assert stored(session) == [0]


def test_what_is_larger_than_the_quota_is_not_even_uploaded(session):
    limit(session, 1023)
    assert not put(session)
    assert count(session, "tensor_metadata") == 0


def test_a_tensor_counts_once_for_all_that_have_it(session):
    limit(session, 1 << 10)
    output = weights((256,))
    assert put_activations(session, NAMESPACE, DIGEST, {"in": output, "out": output})
    assert put_activations(session, NAMESPACE, OTHER, {"in": output})
    assert count(session, "activation_cache") == 3
    assert put(session, 7)
    assert stored(session) == [7]


def test_prune_takes_the_tensors_of_what_was_evicted_and_no_others(database):
    database.transaction(lambda session: limit(session, 1 << 10))
    for number in range(3):
        database.transaction(lambda session, number=number: put(session, number))
    assert prune(database.engine, grace=dt.timedelta(0)).tensors == 2
    with database.session() as session:
        assert get_activations(session, NAMESPACE, [POINT], input_digest({"n": np.array(2)})) is not None


def test_a_sweep_takes_what_expired(database):
    database.transaction(lambda session: put(session, 0, ttl=3600))
    database.transaction(lambda session: put(session, 1))
    database.transaction(
        lambda session: (
            session.execute(text("UPDATE arc_halo.activation_cache SET expires_at = expires_at - interval '2 hours'"))
            and None
        )
    )
    with database.session() as session:
        assert session.execute(text("SELECT activation_cache_count FROM arc_halo.expire_caches()")).scalar_one() == 1
        assert stored(session) == [1]


@pytest.mark.parametrize("quota", [None, 64 << 10])
def test_fifty_writers_of_one_key_make_one_row(database, quota):
    if quota:
        database.transaction(lambda session: limit(session, quota))
    outputs = {f"layers.{number}": weights((300,), number) for number in range(6)}

    def write(number):
        order = np.random.default_rng(number).permutation(list(outputs))
        given = {str(name): outputs[name] for name in order}
        return database.transaction(lambda session: put_activations(session, NAMESPACE, DIGEST, given), attempts=1)

    with ThreadPoolExecutor(50) as pool:
        assert all(pool.map(write, range(50)))
    with database.session() as session:
        assert (count(session, "activation_cache"), count(session, "tensor_metadata")) == (6, 6)
        assert get_activations(session, NAMESPACE, list(outputs), DIGEST).keys() == outputs.keys()


def test_writers_of_many_keys_keep_within_the_quota(database):
    database.transaction(lambda session: limit(session, 4 << 10))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: database.transaction(lambda session: put(session, number)), range(20)))
    with database.session() as session:
        assert len(stored(session)) == 4

from __future__ import annotations

import datetime as dt
import sys

import ml_dtypes
import numpy as np
import pytest
from sqlalchemy import text

from arc_halo.codecs.policy import Encoded
from arc_halo.errors import CorruptionError
from arc_halo.schema.columns import TENANT_ID
from arc_halo.store import prune
from arc_halo.store.connections import driver_connection
from arc_halo.store.payloads import fetch
from arc_halo.store.progress import Meter
from arc_halo.store.repack import Wish, repack_chunks, reroot
from tests.fixtures.tensors import chunk_digests, get, put, random_array, same, weights
from tests.store.test_deltas import depth, put_on, stored, trained

REPACK = sys.modules["arc_halo.store.repack"]
PRUNE = sys.modules["arc_halo.store.prune"]  # its package has the function of that name
AT_ONCE = dt.timedelta(0)
QUIET = Meter(None, "repack", 0)
BF16 = ml_dtypes.bfloat16


@pytest.fixture
def family(database):
    """Four versions of one tensor, each trained from the one before and stored as its delta."""
    arrays = [weights((900, 700), dtype=BF16)]
    with database.session() as session:
        wanted = put(session, arrays[0], compression="dense")
        for seed in range(1, 4):
            arrays.append(trained(arrays[-1], seed=seed))
            wanted.append(put_on(session, wanted[-1], arrays[-1], "dense"))
        session.commit()
        assert [depth(session, each) for each in wanted] == [0, 1, 2, 3]
    return list(zip(wanted, arrays, strict=True))


def depths(session, family):
    return [depth(session, wanted) for wanted, _ in family]


def check(database, family):
    with database.session() as session:
        assert all(same(get(session, wanted), array) for wanted, array in family)
        return depths(session, family)


def wishes(session, wanted, policy, base=None):
    bases = [None] * 99 if base is None else chunk_digests(session, base)
    return [Wish(digest, policy, each) for digest, each in zip(chunk_digests(session, wanted), bases, strict=False)]


def repack(database, wanted, policy="dense", base=None):
    with database.session() as session:
        asked = wishes(session, wanted, policy, base)
    return repack_chunks(database.engine, None, asked, QUIET)


def test_a_delta_can_stand_for_itself_and_takes_what_leans_on_it_along(database, family):
    repacked = repack(database, family[1][0])
    assert (repacked.chunks, repacked.changed) == (2, 2)
    assert repacked.after_nbytes > repacked.before_nbytes
    assert check(database, family) == [0, 0, 1, 2]


def test_a_family_is_turned_round(database, family):
    newest = family[-1][0]
    repack(database, newest)
    for wanted, _ in family[:-1]:
        repack(database, wanted, base=newest)
    assert check(database, family) == [1, 1, 1, 0]
    assert repack(database, family[0][0], base=newest).changed == 0


def test_a_circle_is_refused(database, family):
    repack(database, family[0][0], base=family[2][0])
    assert check(database, family) == [0, 1, 2, 3]


def test_a_chain_that_would_grow_too_deep_is_cut(database, family):
    with database.session() as session:
        deep, array = family[-1]
        for seed in range(10, 14):
            array = trained(array, seed=seed)
            deep = put_on(session, deep, array, "dense")
        other = put(session, weights((900, 700), 99, BF16), trained(weights((900, 700), 99, BF16)), compression="dense")
        tip = put_on(session, other[0], trained(weights((900, 700), 99, BF16), seed=5), "dense")
        session.commit()
        assert (depth(session, deep), depth(session, tip)) == (7, 1)
    repack(database, family[0][0], base=tip)  # all its eight descendants would move two down
    assert check(database, [*family, (deep, array)])[-1] <= 8


def test_a_base_that_is_too_deep_is_passed_by_for_what_it_leans_on(database, family):
    repack(database, family[3][0], "fast", base=family[2][0])
    assert check(database, family) == [0, 1, 2, 1]
    repack(database, family[3][0], "balanced", base=family[2][0])
    assert check(database, family) == [0, 1, 2, 2]


CIRCLE = text("""
UPDATE arc_halo.tensor_data AS d SET base_digest = o.digest, base_depth = 3
  FROM arc_halo.tensor_chunks AS c, arc_halo.tensor_chunks AS o
 WHERE c.tensor_id = :tensor AND o.tensor_id = :other AND c.chunk_index = o.chunk_index AND d.digest = c.digest
""")


@pytest.mark.timeout(30)
def test_a_forged_circle_is_left_alone_and_not_leaned_on(database, family):
    tensors = [wanted.tensor_id for wanted, _ in family[:2]]
    with database.session() as session:
        (alone,) = put(session, trained(family[0][1], seed=60), compression="dense")
        session.execute(text("SET LOCAL session_replication_role = replica"))
        for tensor, other in (tensors, tensors[::-1]):
            session.execute(CIRCLE, {"tensor": tensor, "other": other})
        session.commit()
    with pytest.raises(CorruptionError):
        repack(database, alone, base=family[0][0])
    with database.session() as session:
        assert depth(session, put_on(session, family[0][0], trained(family[0][1], seed=61), "fast")) == 0


def test_another_policy_encodes_anew(database, family):
    before = check(database, family)
    repacked = repack(database, family[0][0], "none")
    assert repacked.after_nbytes == 900 * 700 * 2
    assert check(database, family) == before


def test_what_is_damaged_is_left_as_it_is(database, family):
    with database.session() as session:
        session.execute(text("UPDATE arc_halo.tensor_data SET payload_checksum = 0"))
        session.commit()
    with pytest.raises(CorruptionError):
        repack(database, family[0][0], "none")


REPLACE = text("""
UPDATE arc_halo.tensor_data AS d
   SET payload = s.payload, stored_nbytes = s.stored_nbytes, codec = s.codec, payload_checksum = s.payload_checksum
  FROM arc_halo.tensor_data AS s WHERE d.digest = :digest AND s.digest = :by
""")


def test_nothing_is_made_to_lean_on_other_bytes_than_a_digest_names(database, family):
    array = trained(family[0][1], seed=50)
    with database.session() as session:
        (alone,) = put(session, array, compression="dense")
        for digest, by in zip(chunk_digests(session, family[0][0]), chunk_digests(session, alone), strict=True):
            session.execute(REPLACE, {"digest": digest, "by": by})  # its checksum is right, its bytes are not
        session.commit()
    with pytest.raises(CorruptionError):
        repack(database, alone, base=family[0][0])
    with database.session() as session:
        assert depth(session, alone) == 0
        assert same(get(session, alone), array)


def test_another_base_is_a_change_though_the_bytes_stay_as_many(database):
    bits = random_array(np.uint32, (500, 500))
    with database.session() as session:
        wanted, *bases = put(session, bits, bits ^ 1, bits ^ 2)
        session.commit()
    repacked = [repack(database, wanted, base=base) for base in bases]
    assert repacked[1].before_nbytes == repacked[1].after_nbytes
    assert [each.changed for each in repacked] == [1, 1]


def test_a_chunk_that_is_gone_is_passed_over(database):
    assert repack_chunks(database.engine, None, [Wish(bytes(32), "dense")], QUIET).changed == 0


def test_nothing_leans_on_a_rerooted_chunk(database, family):
    with database.session() as session:
        digests = chunk_digests(session, family[1][0])
    for digest in digests:
        reroot(database.engine, None, digest, QUIET)
    assert check(database, family) == [0, 1, 1, 2]


def forget(database, *wanted):
    with database.session() as session:
        for each in wanted:
            session.execute(text("DELETE FROM arc_halo.tensor_metadata WHERE id = :id"), {"id": each.tensor_id})
        session.commit()


@pytest.mark.parametrize("gone", [(0,), (1,), (0, 1), (0, 1, 2), (1, 3), (3,), (2, 3), (0, 1, 2, 3)], ids=str)
def test_prune_frees_what_deltas_leaned_on(database, family, gone, monkeypatch):
    monkeypatch.setattr(PRUNE, "_unreferenced", lambda _: "false")  # tensors without models stay
    forget(database, *(family[index][0] for index in gone))
    pruned = prune(database.engine, grace=AT_ONCE)
    assert pruned.chunks == 2 * len(gone)
    left = [member for index, member in enumerate(family) if index not in gone]
    check(database, left)
    with database.session() as session:
        assert session.scalar(text("SELECT count(*) FROM arc_halo.tensor_data")) == 2 * len(left)
        if 0 in gone and left:
            assert stored(session, left[0][0]) > stored(session, left[-1][0]) or len(left) == 1


def test_a_chunk_that_others_store_as_it_is_stays_compressed(database, family, monkeypatch):
    monkeypatch.setattr(PRUNE, "_unreferenced", lambda _: "false")
    wanted, array = family[1]
    with database.session() as session:
        put(session, array.reshape(30, 30, 700), compression="none")  # the same chunks
        session.commit()
    forget(database, family[0][0])
    assert prune(database.engine, grace=AT_ONCE).chunks == 2
    with database.session() as session:
        assert stored(session, wanted) < 0.8 * array.nbytes


def test_prune_leaves_deltas_of_what_is_damaged(database, family, monkeypatch):
    monkeypatch.setattr(PRUNE, "_unreferenced", lambda _: "false")
    forget(database, family[0][0])
    with database.session() as session:
        session.execute(text("UPDATE arc_halo.tensor_data SET payload_checksum = 0 WHERE base_digest IS NULL"))
        session.commit()
    assert prune(database.engine, grace=AT_ONCE).chunks == 0


def test_nothing_is_lost_when_zeros_are_leaned_on(database):
    zeros, ones = np.zeros((600, 600), np.float32), np.full((600, 600), 1e-3, np.float32)
    with database.session() as session:
        (base,) = put(session, zeros, compression="dense")
        wanted = put_on(session, base, ones, "dense")
        session.commit()
        assert same(get(session, wanted), ones)


def test_a_chunk_that_somebody_else_encoded_anew_meanwhile_is_not_counted(database, family):
    wanted, _ = family[3]
    with database.session() as session:
        (digest, *_) = chunk_digests(session, wanted)
        driver = driver_connection(session.connection())
        chunk = fetch(driver, TENANT_ID, [digest], None).chunks[digest]
        encoded = Encoded("raw", b"", is_delta=False)
        assert not REPACK._update(
            driver, None, chunk._replace(payload_checksum=chunk.payload_checksum ^ 1), encoded, None
        )
    check(database, family)

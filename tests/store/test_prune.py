from __future__ import annotations

import datetime as dt
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, text

from arc_halo.registry import (
    add_embeddings,
    check_model,
    create_model,
    delete_model,
    import_model,
    iter_tensors,
    measure_storage,
)
from arc_halo.schema import Operation
from arc_halo.store import Pruned, prune
from arc_halo.store import put as store_put
from arc_halo.store.prune import BATCH_ROWS
from tests.fixtures.models import bert, write_folder
from tests.fixtures.tensors import count, counts, put, same, weights

AT_ONCE = dt.timedelta(0)


@pytest.fixture
def folder(tmp_path):
    return write_folder(bert(), tmp_path / "bert")


def run(database, unit):
    return database.transaction(unit)


def make_old(session):
    for table in ("tensor_metadata", "tensor_data"):
        session.execute(text(f"UPDATE arc_halo.{table} SET touched_at = now() - interval '2 days'"))


def test_what_a_deleted_model_used_goes_with_its_embeddings(database, folder):
    run(database, lambda session: import_model(session, folder, name="a"))
    run(database, lambda session: delete_model(session, "a"))
    planned = prune(database.engine, grace=AT_ONCE, dry_run=True)
    assert prune(database.engine, grace=AT_ONCE) == planned
    assert planned.tensors > 0 < planned.stored_nbytes
    with database.session() as session:
        assert counts(session) == (0, 0, 0)
        assert count(session, "embeddings") == 0


def test_a_dry_run_deletes_nothing(database):
    run(database, lambda session: put(session, weights((400, 400))) and None)
    assert prune(database.engine, grace=AT_ONCE, dry_run=True).tensors == 1
    with database.session() as session:
        assert counts(session) == (1, 1, 1)


def test_what_others_share_stays(database):
    base = {"a": weights((300, 300), 1), "b": weights((300, 300), 2)}
    run(database, lambda session: create_model(session, "one", {}, base).id)
    run(database, lambda session: create_model(session, "two", {}, {**base, "b": weights((300, 300), 3)}).id)
    with database.session() as session:
        own = measure_storage(session, "one").own_nbytes
    run(database, lambda session: delete_model(session, "one"))
    assert prune(database.engine, grace=AT_ONCE) == Pruned(1, 1, own)
    with database.session() as session:
        assert measure_storage(session, "two").chunk_count == 2


def test_a_chunk_shared_by_another_tensor_stays(database):
    array = weights((300, 300))
    run(database, lambda session: create_model(session, "one", {}, {"a": array}).id)
    run(database, lambda session: create_model(session, "two", {}, {"a": array.reshape(-1)}).id)
    run(database, lambda session: delete_model(session, "one"))
    assert prune(database.engine, grace=AT_ONCE) == Pruned(1, 0, 0)


def test_gradients_keep_their_tensors(database):
    def unit(session):
        model = create_model(session, "one", {}, {"a": weights((9, 9))})
        (gradient,) = put(session, weights((9, 9), 1))
        session.execute(text("UPDATE arc_halo.model_weights SET gradient_tensor_id = :g"), {"g": gradient.tensor_id})
        return model.id

    run(database, unit)
    assert prune(database.engine, grace=AT_ONCE) == Pruned(0, 0, 0)


def test_vectors_of_other_kinds_are_not_content_to_prune(database):
    run(database, lambda session: add_embeddings(session, "text", weights((3, 4))))
    prune(database.engine, grace=AT_ONCE)
    with database.session() as session:
        assert count(session, "embeddings") == 3


def test_recent_content_is_left(database):
    run(database, lambda session: put(session, weights((40, 40))) and None)
    assert prune(database.engine) == Pruned(0, 0, 0)
    age = "UPDATE arc_halo.{} SET touched_at = now() - interval '2 days'"
    run(
        database, lambda session: [session.execute(text(age.format(t))) for t in ("tensor_metadata", "tensor_data")][:0]
    )
    assert prune(database.engine).chunks == 1


def test_using_old_content_again_makes_it_recent(database, monkeypatch):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", -1)
    array = weights((40, 40))
    run(database, lambda session: put(session, array) and None)
    age = "UPDATE arc_halo.{} SET touched_at = now() - interval '2 days'"
    run(
        database, lambda session: [session.execute(text(age.format(t))) for t in ("tensor_metadata", "tensor_data")][:0]
    )
    run(database, lambda session: put(session, array, array.reshape(-1)) and None)
    assert prune(database.engine) == Pruned(0, 0, 0)


def test_operations_are_forgotten_after_a_day_whatever_the_grace(database):
    with database.session() as session:
        session.add_all(Operation(committed_at=func.now() - dt.timedelta(hours=hours)) for hours in (0, 23, 25))
        session.commit()
        prune(database.engine, grace=AT_ONCE)
        assert count(session, "operations") == 2


def test_more_than_one_batch(database):
    tensors = {f"t{index}": weights((2,), index) for index in range(BATCH_ROWS + 10)}
    run(database, lambda session: create_model(session, "many", {}, tensors).id)
    run(database, lambda session: delete_model(session, "many"))
    assert prune(database.engine, grace=AT_ONCE).chunks == BATCH_ROWS + 10


def test_pruning_all_the_time_takes_nothing_of_small_saves(database):
    arrays = {f"t{index}": weights((400, 700), index) for index in range(12)}
    stop = threading.Event()

    def keep_pruning():
        while not stop.is_set():
            prune(database.engine, grace=AT_ONCE)

    with ThreadPoolExecutor(1) as pool:
        pruning = pool.submit(keep_pruning)
        try:
            for name in ("first", "second", "last"):
                run(database, lambda session, name=name: create_model(session, name, {}, arrays).id)
                if name != "last":
                    run(database, lambda session, name=name: delete_model(session, name))
        finally:
            stop.set()
        pruning.result(60)
    assert_sound(database, "last", arrays)


def test_a_big_save_uploads_again_what_was_pruned_under_it(database, monkeypatch):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", -1)
    arrays = {f"t{index}": weights((1000, 700), index) for index in range(6)}
    pruned = []

    def prune_thrice(phase, _done, _total):
        if phase == "store" and len(pruned) < 3:
            expire_leases(database)
            pruned.append(prune(database.engine, grace=AT_ONCE))

    run(database, lambda session: create_model(session, "big", {}, arrays, progress=prune_thrice).id)
    assert any(each.tensors for each in pruned)
    assert_sound(database, "big", arrays)


def test_a_big_save_is_left_alone(database, monkeypatch):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", -1)
    arrays = {f"t{index}": weights((1000, 700), index) for index in range(6)}
    pruned = []

    def prune_often(_phase, _done, _total):
        pruned.append(prune(database.engine, grace=AT_ONCE))

    run(database, lambda session: create_model(session, "big", {}, arrays, progress=prune_often).id)
    assert {each.chunks for each in pruned} == {0}
    assert_sound(database, "big", arrays)


def assert_sound(database, name, arrays):
    with database.session() as session:
        assert not list(check_model(session, name))
        assert all(same(array, arrays[tensor]) for tensor, array in iter_tensors(session, name))


def expire_leases(database):
    """As if the uploads under way had died an hour ago."""
    with database.session() as session:
        session.execute(text("UPDATE arc_halo.upload_leases SET expires_at = now() - interval '1 second'"))
        session.commit()

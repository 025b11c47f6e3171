"""The views over weights: what they count, and that what is asked of one model is not counted for all."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import func, select, text, update

from arc_halo.registry import add_lineage, create_model, measure_storage
from arc_halo.schema import Chunk, DuplicateTensor, ModelFamily, ModelLineage, ModelStorage, UnsoundLayer
from tests.fixtures.tensors import weights
from tests.schema.rows import add, add_chunk, add_layer, add_model, add_tensor, add_weight
from tests.store.test_deltas import trained


@pytest.fixture
def family(session):
    """A base, a fine-tune that shares one tensor and leans with the other, and its copy under another name."""
    first = {"w": weights((900, 400)), "b": weights((2000,), 3)}
    base = create_model(session, "base", {}, first)
    tuned = create_model(session, "tuned", {}, first | {"w": trained(first["w"])}, base="base")
    again = create_model(session, "again", {}, first | {"w": trained(first["w"])})
    add_lineage(session, tuned, base, "finetune")
    add_lineage(session, again, tuned, "copy")
    return base, tuned, again


def add_made_of(session, name, *payloads):
    """A model of one tensor, of chunks with these payloads."""
    model = add_model(session, name)
    tensor = add_tensor(session, 100)
    add_weight(session, model, "w", tensor)
    for index, payload in enumerate(payloads):
        add_chunk(session, tensor, index, payload)
    return model


def add_link(session, child, parent, kind="finetune"):
    add(session, ModelLineage(child_id=child.id, parent_id=parent.id, kind=kind))


def storage(session, model):
    return session.get(ModelStorage, model.id, populate_existing=True)


def members(session):
    return session.scalars(select(ModelFamily).order_by(ModelFamily.path)).all()


def test_storage_is_what_measure_storage_says(session, family):
    for model in family:
        seen, measured = storage(session, model), measure_storage(session, model)
        for name in ("raw_nbytes", "chunk_count", "distinct_nbytes", "stored_nbytes", "shared_nbytes", "own_nbytes"):
            assert getattr(seen, name) == getattr(measured, name), name


def test_shared_and_own_bytes_are_told_apart(session):
    one = add_made_of(session, "one", b"both", b"alone", b"alone")
    add_made_of(session, "two", b"both")
    seen = storage(session, one)
    assert (seen.raw_nbytes, seen.chunk_count, seen.stored_nbytes) == (400, 2, 9)
    assert (seen.shared_nbytes, seen.own_nbytes) == (4, 5)
    assert seen.ratio == 9 / 400


def test_bytes_in_the_blob_store_are_told_apart(session):
    model = add_made_of(session, "one", b"here", b"there")
    session.execute(update(Chunk).where(Chunk.payload == b"there").values(payload=None, blob_location="th/ere"))
    seen = storage(session, model)
    assert (seen.database_nbytes, seen.blob_nbytes, seen.stored_nbytes) == (4, 5, 9)


def test_deltas_and_what_they_lean_on(session, family):
    base, tuned, _ = (storage(session, model) for model in family)
    assert (base.delta_count, base.delta_nbytes, base.base_nbytes, base.max_depth) == (0, 0, 0, 0)
    assert (tuned.delta_count, tuned.max_depth, tuned.blob_nbytes) == (2, 1, 0)
    assert 0 < tuned.delta_nbytes < tuned.stored_nbytes
    assert tuned.base_nbytes == base.own_nbytes


def test_bases_of_bases_count_once_and_not_where_the_model_uses_them(session):
    model = add_made_of(session, "one", b"top", b"other top", b"low")
    add_made_of(session, "two", b"middle")
    for payload, base in ((b"middle", b"low"), (b"top", b"middle"), (b"other top", b"middle")):
        digest, depth = session.execute(select(Chunk.digest, Chunk.depth).where(Chunk.payload == base)).one()
        leaning = update(Chunk).where(Chunk.payload == payload)
        session.execute(leaning.values(base_digest=digest, base_depth=depth))
    seen = storage(session, model)
    assert (seen.delta_count, seen.base_nbytes, seen.max_depth) == (2, len(b"middle"), 2)


def test_a_model_without_weights_takes_nothing(session):
    empty = storage(session, create_model(session, "empty", {}, {}))
    assert (empty.raw_nbytes, empty.stored_nbytes, empty.own_nbytes, empty.base_nbytes, empty.ratio) == (
        0,
        0,
        0,
        0,
        None,
    )


@pytest.mark.usefixtures("family")
def test_each_member_of_a_family_adds_what_those_before_it_do_not_have(session):
    found = members(session)
    assert [(each.name, each.kind, each.depth) for each in found] == [
        ("base", None, 0), ("tuned", "finetune", 1), ("again", "copy", 2),
    ]  # fmt: skip
    base, tuned, again = found
    assert base.added_nbytes == base.stored_nbytes
    assert 0 < tuned.added_nbytes < tuned.stored_nbytes
    assert (again.added_nbytes, again.saved_nbytes) == (0, again.raw_nbytes)


def test_what_siblings_share_is_added_once(session):
    root = add_made_of(session, "root", b"root")
    for name in ("elder", "younger"):
        add_link(session, add_made_of(session, name, b"root", b"sibling", name.encode()), root)
    added = {each.name: each.added_nbytes for each in members(session)}
    assert added == {"root": 4, "elder": 12, "younger": 7}
    assert sum(added.values()) == session.scalar(select(func.sum(Chunk.stored_nbytes)))


def test_a_merge_stands_once_below_its_first_parent_and_names_the_others(session):
    root, left, right, merged = (add_made_of(session, name, name.encode()) for name in ("root", "l", "r", "merged"))
    add_link(session, left, root)
    add_link(session, right, root)
    add_link(session, merged, left, "merge")
    add_link(session, merged, right, "merge")
    found = {each.name: each for each in members(session)}
    assert len(members(session)) == len(found) == 4
    assert (found["merged"].parent_id, found["merged"].other_parent_ids) == (left.id, [right.id])
    assert (found["merged"].depth, found["l"].other_parent_ids) == (2, [])


def test_what_has_two_roots_is_in_both_families(session):
    left, right, merged = (add_made_of(session, name, name.encode()) for name in ("left", "right", "merged"))
    add_link(session, merged, left, "merge")
    add_link(session, merged, right, "merge")
    found = session.scalars(select(ModelFamily).where(ModelFamily.model_id == merged.id).order_by(ModelFamily.path))
    assert [(each.root_id, each.parent_id) for each in found] == [(left.id, left.id), (right.id, right.id)]


def test_as_many_ways_as_there_may_be_are_one_member_each(session):
    # 2^20 ways lead from the first to the last: to walk each would take for ever.
    level = [add_made_of(session, "root", b"root")]
    for number in range(20):
        below = [add_made_of(session, f"{number}{side}", b"root") for side in "ab"]
        for child in below:
            for parent in level:
                add_link(session, child, parent, "merge")
        level = below
    assert len(members(session)) == 41


def test_a_circle_made_by_hand_does_not_hang(session):
    root, one, two = (add_made_of(session, name, b"x") for name in ("root", "one", "two"))
    add_link(session, one, two)
    add_link(session, two, one)
    add_link(session, one, root)
    assert [each.name for each in members(session)] == ["root"]


@pytest.mark.usefixtures("family")
def test_duplicates_name_who_uses_them(session):
    found = {each.nbytes: each for each in session.scalars(select(DuplicateTensor))}
    shared = found[8000]
    assert (shared.weight_count, shared.model_count, shared.saved_nbytes) == (3, 3, 16_000)
    assert shared.used_as == ["again@1 b", "base@1 b", "tuned@1 b"]


def test_layers_with_nan_are_found(session):
    bad = np.array([1, np.nan, np.inf, np.nan], np.float32)
    model = create_model(session, "m", {}, {"layer.w": bad, "layer.v": weights((3,))})
    (found,) = session.scalars(select(UnsoundLayer))
    assert (found.model_id, found.nan_count, found.inf_count, found.weights) == (model.id, 2, 1, ["layer.w"])


def test_weights_without_a_layer_are_found_too(session):
    model = add_model(session)
    add_weight(session, model, "w", add_tensor(session, nan_count=0, inf_count=3))
    add_weight(session, model, "v", add_tensor(session, nan_count=1, inf_count=0), layer=add_layer(session, model, "l"))
    found = {
        each.path: (each.nan_count, each.inf_count, each.weights) for each in session.scalars(select(UnsoundLayer))
    }
    assert found == {None: (0, 3, ["w"]), "l": (1, 0, ["v"])}


COMPARE = text("SELECT * FROM arc_halo.compare_weights(:a, :b)")


def compare(session, before, after):
    models = [create_model(session, "m", {}, arrays) for arrays in (before, after)]
    return session.execute(COMPARE, {"a": models[0].id, "b": models[1].id}).all()


def test_weights_that_moved_are_listed_with_how_far(session):
    same = {"same": weights((3,))}
    rows = compare(
        session,
        {"a": np.full(4, 2, np.float32), "zero": np.zeros(4, np.float32)} | same,
        {"a": np.full(4, 3, np.float32), "zero": np.ones(4, np.float32)} | same,
    )
    assert [row.name for row in rows] == ["a", "zero"]
    moved = [(row.norm_before, row.norm_after, row.norm_moved, row.norm_moved_relative) for row in rows]
    assert moved == [(4, 6, 2, 0.5), (0, 2, 2, None)]


def test_changes_are_named_with_type_and_shape_of_both(session):
    whole = weights((4, 6))
    rows = compare(
        session,
        {"cast": whole, "gone": whole[0], "grown": whole[1:], "turned": whole[1:], "flat": whole[:1]},
        {
            "cast": whole.astype(np.float16),
            "new": whole[0],
            "grown": whole,
            "turned": whole[1:].T.copy(),
            "flat": whole[0],
        },
    )
    assert {row.name: row.change for row in rows} == {
        "cast": "cast", "gone": "removed", "new": "added", "grown": "resized", "turned": "reshaped", "flat": "reshaped",
    }  # fmt: skip
    found = {row.name: row for row in rows}
    assert (found["cast"].dtype_before, found["cast"].dtype_after) == ("F32", "F16")
    assert (found["turned"].shape_before, found["turned"].shape_after) == ([3, 6], [6, 3])
    assert (found["new"].dtype_before, found["new"].nbytes_before, found["new"].nbytes_after) == (None, None, 24)


BIG = ("model_weights", "tensor_metadata", "tensor_chunks", "tensor_data")


@pytest.fixture
def many(session):
    """Thirty models of ten tensors of three chunks, which all share the first."""
    for number in range(30):
        model = add_model(session, f"m{number}")
        for place in range(10):
            tensor = add_tensor(session)
            add_weight(session, model, f"w{place}", tensor)
            for index in range(3):
                add_chunk(session, tensor, index, f"{place} {index and number} {index}".encode())
    for table in ("models", *BIG):
        session.execute(text(f"ANALYZE arc_halo.{table}"))
    return model


@pytest.mark.parametrize("view", ["v_model_storage", "v_model_family", "v_unsound_layers"])
def test_one_model_is_asked_for_by_indexes(session, many, view):
    for setting in ("enable_seqscan", "enable_hashjoin"):  # which small tables are better off with
        session.execute(text(f"SET LOCAL {setting} = off"))
    statement = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) SELECT * FROM arc_halo.{view} WHERE model_id = :id"
    (plan,) = session.execute(text(statement), {"id": many.id}).scalar_one()
    scanned = [each for each in scans(plan["Plan"]) if each[0] in BIG]
    assert "model_weights" in {table for table, _, _ in scanned}
    assert not [each for each in scanned if each[1] == "Seq Scan" or each[2] > 31], scanned


def test_bases_are_told_from_what_a_model_uses_by_no_list(session, many):
    """A list that work_mem does not hold is gone through from its start for each of them."""
    statement = "EXPLAIN (FORMAT JSON) SELECT * FROM arc_halo.v_model_storage WHERE model_id = :id"
    (plan,) = session.execute(text(statement), {"id": many.id}).scalar_one()
    assert not [each for each in filters(plan["Plan"]) if "ANY" in each]


def filters(node):
    """Conditions that a plan looks at row by row."""
    if "Filter" in node:
        yield node["Filter"]
    for child in node.get("Plans", ()):
        yield from filters(child)


def scans(node):
    """Each table that a plan reads, how, and how many rows one visit finds."""
    if "Relation Name" in node:
        yield node["Relation Name"], node["Node Type"], node["Actual Rows"]
    for child in node.get("Plans", ()):
        yield from scans(child)

"""Checkpoints that stay and that go, and what goes with them."""

import datetime as dt
import uuid

import pytest
from safetensors.numpy import save_file
from sqlalchemy import select, text

from arc_halo.errors import CheckpointError, CheckpointNotFound
from arc_halo.registry import create_model, delete_model, measure_storage, repack_family, repair
from arc_halo.schema import ModelCheckpoint, TrainingSession
from arc_halo.store import Pruned, prune
from arc_halo.store import put as store_put
from arc_halo.store.verify import verify_database
from arc_halo.training import saving
from arc_halo.training.checkpoint import CheckpointState
from arc_halo.training.loading import load_checkpoint
from arc_halo.training.publishing import hold_attempt
from arc_halo.training.ranks import begin_checkpoint
from arc_halo.training.retention import apply_retention, delete_checkpoint
from arc_halo.training.saving import save_checkpoint
from tests.fixtures.tensors import count, put, same, trained, weights
from tests.schema.rows import add_attempt, add_run
from tests.training.states import begin, spelt, state

AT_ONCE = dt.timedelta(0)
OF_CHECKPOINTS = ("model_checkpoints", "checkpoint_tensors", "optimizer_state", "checkpoint_ranks")


@pytest.fixture
def attempt(session):
    return begin(session)


def save(session, attempt, *steps, **options):
    return [
        save_checkpoint(session, attempt, CheckpointState(weights={"w": weights((4,), step)}), step, **options)
        for step in steps
    ]


def steps_left(session):
    return list(session.scalars(select(ModelCheckpoint.step).order_by(ModelCheckpoint.step)))


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ({}, [10, 20, 30, 40, 50, 60]),
        ({"keep_last": 2}, [20, 30, 50, 60]),
        ({"keep_last": 2, "keep_best": False}, [30, 50, 60]),
        ({"keep_every": 20}, [20, 30, 40, 60]),
        ({"keep_every": 1000, "keep_best": False}, [30, 60]),
        ({"keep_last": 1, "keep_every": 50}, [20, 30, 50, 60]),
        ({"keep_last": 100}, [10, 20, 30, 40, 50, 60]),
    ],
)
def test_rules_say_which_stay(session, attempt, rules, left):
    saved = save(session, attempt, 10, 20, is_best=True) + save(session, attempt, 30, 40, 50, 60)
    saved[2].is_pinned = True
    gone = apply_retention(session, attempt.training_session, **rules)
    assert steps_left(session) == left
    assert set(gone) == {each.id for each in saved} - set(session.scalars(select(ModelCheckpoint.id)))


def test_what_was_rewound_past_is_not_among_the_last(session, attempt):
    save(session, attempt, 10, 20, 30)
    rewound = add_attempt(session, attempt.training_session, 1, parent_number=0, fork_step=20)
    save(session, rewound, 25)
    apply_retention(session, attempt.training_session.id, keep_last=2)
    assert steps_left(session) == [20, 25]


def test_the_last_of_each_type_stays(session, attempt):
    save(session, attempt, 10, 20)
    save(session, attempt, 20, 30, 40, checkpoint_type="weights")
    pending = begin_checkpoint(session, attempt, 50, 2)
    apply_retention(session, attempt.training_session, keep_last=1)
    assert steps_left(session) == [20, 40, 50]
    assert pending.status == "pending"


@pytest.mark.parametrize("rules", [{"keep_last": 0}, {"keep_every": -1}, {"keep_last": True}, {"keep_every": 0.5}])
def test_rules_that_keep_nothing_are_refused(session, attempt, rules):
    with pytest.raises(CheckpointError, match="keeps nothing"):
        apply_retention(session, attempt.training_session, **rules)


def test_other_runs_are_left_alone(session, attempt):
    other = begin(session, "other")
    save(session, attempt, 1, 2)
    save(session, other, 3, 4)
    apply_retention(session, attempt.training_session, keep_last=1)
    assert steps_left(session) == [2, 3, 4]


def test_a_deleted_checkpoint_leaves_nothing(session, attempt):
    checkpoint = save_checkpoint(session, attempt, state(), 3)
    delete_checkpoint(session, checkpoint)
    assert [count(session, table) for table in OF_CHECKPOINTS] == [0, 0, 0, 0]
    for gone in (checkpoint, uuid.uuid4()):
        with pytest.raises(CheckpointNotFound):
            delete_checkpoint(session, gone)


def test_prune_leaves_what_checkpoints_use_and_takes_what_they_used(database):
    whole = state(shapes={"w": (300, 300), "b": (300,)})
    checkpoint_id = database.transaction(lambda session: save_checkpoint(session, begin(session), whole, 3).id)
    assert prune(database.engine, grace=AT_ONCE) == Pruned(0, 0, 0)
    with database.session() as session:
        assert spelt(load_checkpoint(session, checkpoint_id).weights) == spelt(whole.weights)
    database.transaction(lambda session: delete_checkpoint(session, checkpoint_id))
    assert prune(database.engine, grace=AT_ONCE).chunks > 0
    with database.session() as session:
        assert count(session, "tensor_metadata") == count(session, "tensor_data") == 0


@pytest.mark.parametrize("owner", ["run", "model"])
def test_checkpoints_go_with_their_run_and_with_its_model(database, owner):
    def unit(session):
        model = create_model(session, "m", {}, {"embed.weight": weights((40, 16))})
        save_checkpoint(session, add_attempt(session, add_run(session, model)), state(), 3)

    database.transaction(unit)
    with database.session() as session, session.begin():
        if owner == "model":
            delete_model(session, "m", force=True)
        else:
            session.delete(session.scalars(select(TrainingSession)).one())
    prune(database.engine, grace=AT_ONCE)
    with database.session() as session:
        assert [count(session, table) for table in OF_CHECKPOINTS] == [0, 0, 0, 0]
        assert count(session, "tensor_metadata") == (0 if owner == "model" else 1)


def line_of(database, steps=4):
    """A model and checkpoints that lean on it and on each other; returns their weights."""
    array = weights((600, 300))

    def unit(session):
        model = create_model(session, "m", {}, {"w": array})
        attempt = add_attempt(session, add_run(session, model))
        line = [trained(array, step) for step in range(1, steps + 1)]
        ids = [
            save_checkpoint(session, attempt, CheckpointState(weights={"w": each}), step).id
            for step, each in enumerate(line, 1)
        ]
        return dict(zip(ids, line, strict=True))

    return database.transaction(unit)


def leaning(session):
    return session.scalar(text("SELECT count(*) FROM arc_halo.tensor_data WHERE base_digest IS NOT NULL"))


def check_line(database, line):
    assert verify_database(database).faults == []
    with database.session() as session:
        for checkpoint_id, array in line.items():
            assert same(load_checkpoint(session, checkpoint_id).weights["w"], array)


def test_checkpoints_lean_on_those_before_and_survive_them(database):
    line = line_of(database)
    with database.session() as session:
        assert leaning(session) == 4
    ids = list(line)
    for gone in ids[:2]:
        database.transaction(lambda session, gone=gone: delete_checkpoint(session, gone))
        del line[gone]
        prune(database.engine, grace=AT_ONCE)
        check_line(database, line)


def test_repacking_the_family_leaves_checkpoints_whole(database):
    line = line_of(database)
    repack_family(database.engine, "m", compression="dense")
    check_line(database, line)
    with database.session() as session:
        storage = measure_storage(session, "m")
        assert storage.raw_nbytes == 600 * 300 * 4
        assert session.execute(text("SELECT * FROM arc_halo.v_model_family")).all()


def test_verify_names_the_checkpoint_of_a_tensor(database):
    checkpoint_id = database.transaction(lambda session: save_checkpoint(session, begin(session), state(), 3).id)
    with database.session() as session, session.begin():
        session.execute(text("UPDATE arc_halo.tensor_metadata SET chunk_nbytes = chunk_nbytes + 4"))
    found = {fault["tensor"] for fault in verify_database(database).faults}
    assert f"checkpoint {checkpoint_id} weights embed.weight" in found
    assert f"checkpoint {checkpoint_id} optimizer embed.weight exp_avg" in found


def test_a_folder_of_its_weights_repairs_a_checkpoint(database, tmp_path):
    array = weights((300, 300))
    checkpoint_id = database.transaction(
        lambda session: save_checkpoint(session, begin(session), CheckpointState(weights={"w": array}), 3).id
    )
    with database.session() as session, session.begin():
        session.execute(
            text("UPDATE arc_halo.tensor_data SET payload = set_byte(payload, 9, 99 - get_byte(payload, 9))")
        )
    assert len(verify_database(database).faults) == 1
    save_file({"w": array}, tmp_path / "model.safetensors")
    repaired = database.transaction(lambda session: repair(session, copies=[tmp_path]))
    assert (len(repaired.repaired), repaired.missing) == (1, [])
    check_line(database, {checkpoint_id: array})


@pytest.mark.parametrize("small_nbytes", [-1, 1 << 30])
def test_what_is_pruned_while_it_is_saved_is_uploaded_again(database, monkeypatch, small_nbytes):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", small_nbytes)
    whole = state()
    attempt_id = database.transaction(lambda session: begin(session).id)
    # What a killed save left, old enough to be pruned.
    database.transaction(lambda session: put(session, *whole.weights.values()) and None)
    pruned = []

    def prune_at_once(session, *_, **__):
        if not pruned:
            pruned.append(prune(database.engine, grace=AT_ONCE).tensors)
        return hold_attempt(session, *_, **__)

    monkeypatch.setattr(saving, "hold_attempt", prune_at_once)
    with database.session() as session, session.begin():
        checkpoint = save_checkpoint(session, attempt_id, whole, 3)
    assert (pruned[0] > 0) == (small_nbytes > 0)  # an upload of its own holds a lease
    with database.session() as session:
        assert spelt(load_checkpoint(session, checkpoint.id).weights) == spelt(whole.weights)

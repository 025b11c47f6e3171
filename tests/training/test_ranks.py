"""Checkpoints of several ranks: cut in any way, written beside each other, published by one."""

import threading
import time
import tracemalloc
import uuid
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text

from arc_halo.errors import (
    AttemptLost,
    CheckpointError,
    CheckpointExists,
    CheckpointNotFound,
    RanksMissing,
    SliceError,
    TensorNotFound,
)
from arc_halo.schema import CheckpointRank, ModelCheckpoint, TrainingRank
from arc_halo.testing.databases import rolled_back_session
from arc_halo.training.checkpoint import CheckpointState
from arc_halo.training.contents import Key
from arc_halo.training.finding import latest_checkpoint
from arc_halo.training.loading import load_checkpoint
from arc_halo.training.membership import join_attempt
from arc_halo.training.optimizer import OptimizerSnapshot
from arc_halo.training.parts import Part
from arc_halo.training.ranks import begin_checkpoint, discard_pending, publish_checkpoint, write_rank
from arc_halo.training.saving import save_checkpoint
from arc_halo.training.slabs import Slab, list_arrays, load_slab, load_slabs
from tests.fixtures.tensors import count, random_array, same, weights
from tests.training.states import begin, spelt, state


@pytest.fixture
def attempt(session):
    return begin(session)


def halves(array, rank, of=2):
    """A rank's share of the rows."""
    bounds = np.linspace(0, len(array), of + 1).astype(int)
    rows = slice(bounds[rank], bounds[rank + 1])
    return Part(array[rows], (rows.start, *(0,) * (array.ndim - 1)), array.shape)


def sharded(whole, rank, of=2):
    """A state of which a rank has its share of each matrix, and all of what is smaller."""

    def held(array):
        return halves(array, rank, of) if np.ndim(array) else array

    states = {name: {key: held(value) for key, value in each.items()} for name, each in whole.optimizer.states.items()}
    return CheckpointState(
        weights={name: held(array) for name, array in whole.weights.items()},
        optimizer=OptimizerSnapshot(states, whole.optimizer.groups),
        gradients={name: held(array) for name, array in whole.gradients.items()},
        scheduler=whole.scheduler,
        scaler=whole.scaler,
        extra=whole.extra,
        rng={"seed": rank, "state": random_array(np.uint8, (300,), rank)},
        data_loader={"rank": rank},
    )


def save_by_ranks(session, attempt, states, step=1):
    checkpoint = begin_checkpoint(session, attempt, step, len(states))
    for rank, each in enumerate(states):
        write_rank(session, checkpoint, rank, each)
    return publish_checkpoint(session, checkpoint)


def test_a_state_that_ranks_have_cut_comes_back_whole(session, attempt):
    whole = state()
    checkpoint = save_by_ranks(session, attempt, [sharded(whole, rank) for rank in (0, 1)])
    for rank in (0, 1):
        loaded = load_checkpoint(session, checkpoint, rank=rank)
        expected = spelt(whole) | {name: spelt(getattr(sharded(whole, rank), name)) for name in ("rng", "data_loader")}
        assert {name: spelt(getattr(loaded, name)) for name in expected} == expected
    assert loaded.world_size == 2
    assert load_checkpoint(session, checkpoint, rank=7).rng is None


def cuts_of(draw, size):
    inner = draw(st.lists(st.integers(0, size), max_size=2))
    return sorted({0, size, *inner})


@st.composite
def cut_arrays(draw):
    """An array, all blocks of a grid over it in any order, a rank for each, and a slab of the whole."""
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=3)))
    array = random_array(draw(st.sampled_from([np.float32, np.uint8, np.float64])), shape, draw(st.integers(0, 99)))
    blocks = [()]
    for size in shape:
        bounds = cuts_of(draw, size)
        ends = list(pairwise(bounds)) or [(0, 0)]
        blocks = [(*block, slice(*end)) for block in blocks for end in ends]
    parts = [Part(array[block], tuple(each.start for each in block), shape) for block in blocks]
    ranks = draw(st.integers(1, 3))
    held = [[] for _ in range(ranks)]
    for part in draw(st.permutations(parts)):
        held[draw(st.integers(0, ranks - 1))].append(part)
    bounds = [sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in shape]
    return array, held, tuple(slice(*each) for each in bounds)


@settings(max_examples=60, deadline=None)
@given(cut_arrays())
def test_any_cut_comes_back_as_the_whole_and_as_any_slab(shared_database, cut):
    array, held, block = cut
    states = [CheckpointState(weights={"w": parts} if parts else {}) for parts in held]
    with rolled_back_session(shared_database) as session:
        checkpoint = save_by_ranks(session, begin(session), states)
        assert same(load_checkpoint(session, checkpoint).weights["w"], array)
        start, shape = [each.start for each in block], [each.stop - each.start for each in block]
        slab = load_slab(session, checkpoint, "w", start, shape)
        assert same(slab, np.asarray(array[block]))
        assert slab.flags.writeable
        (stored,) = list_arrays(session, checkpoint)
        assert (stored.key, stored.shape) == (Key("weights", "w"), array.shape)


def test_slabs_of_many_arrays_come_in_the_order_asked(session, attempt):
    whole = state()
    checkpoint = save_by_ranks(session, attempt, [sharded(whole, rank, 3) for rank in range(3)])
    embed, moment = whole.weights["embed.weight"], whole.optimizer.states["block.weight"]["exp_avg"]
    asked = [
        Slab(Key("optimizer", "block.weight", "exp_avg"), (3, 2), (11, 5)),
        Slab(Key("weights", "embed.weight"), (10, 0), (20, 16)),
        Slab(Key("weights", "norm.weight"), (), ()),
        Slab(Key("weights", "embed.weight"), (12, 3), (0, 4)),
        Slab(Key("weights", "embed.weight"), (39, 15), (1, 1)),
    ]
    expected = [moment[3:14, 2:7], embed[10:30], whole.weights["norm.weight"], embed[12:12, 3:7], embed[39:, 15:]]
    found = list(load_slabs(session, checkpoint, asked))
    assert all(same(left, np.asarray(right)) for left, right in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("slab", "error"),
    [
        (Slab(Key("weights", "w"), (0,), (1,)), SliceError),
        (Slab(Key("weights", "w"), (0, 3), (1, 2)), SliceError),
        (Slab(Key("weights", "w"), (-1, 0), (1, 1)), SliceError),
        (Slab(Key("weights", "v"), (0, 0), (1, 1)), TensorNotFound),
    ],
)
def test_slabs_outside_are_refused(session, attempt, slab, error):
    checkpoint = save_checkpoint(session, attempt, CheckpointState(weights={"w": weights((4, 4))}), 1)
    with pytest.raises(error):
        next(load_slabs(session, checkpoint, [slab]))


def test_nothing_is_visible_until_all_ranks_have_written(session, attempt):
    checkpoint = begin_checkpoint(session, attempt, 1, 3)
    assert begin_checkpoint(session, attempt, 1, 3) is checkpoint
    write_rank(session, checkpoint, 1, sharded(state(), 1, 3))
    session.add(TrainingRank(attempt_id=attempt.id, rank=2, world_size=3))
    with pytest.raises(RanksMissing, match=r"0, 2 \(silent for 0 s\) have not written"):
        publish_checkpoint(session, checkpoint)
    with pytest.raises(CheckpointNotFound, match="is pending"):
        load_checkpoint(session, checkpoint)
    assert latest_checkpoint(session, attempt.training_session) is None


def test_ranks_write_at_once_and_one_publishes(database):
    whole = state()
    attempt_id = database.transaction(lambda session: begin(session).id)
    barrier = threading.Barrier(4)

    def train(rank):
        with database.session() as session, session.begin():
            checkpoint_id = begin_checkpoint(session, attempt_id, 1, 4).id
        barrier.wait()
        with database.session() as session, session.begin():
            write_rank(session, checkpoint_id, rank, sharded(whole, rank, 4))

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    with database.session() as session, session.begin():
        checkpoint = publish_checkpoint(session, session.scalars(select(ModelCheckpoint)).one(), is_best=True)
        assert checkpoint.is_best
        assert set(checkpoint.rng_state) == {"0", "1", "2", "3"}
        assert {each.rng_state for each in session.scalars(select(CheckpointRank))} == {None}
        assert spelt(load_checkpoint(session, checkpoint).optimizer) == spelt(whole.optimizer)


def test_what_ranks_hold_twice_counts_once(session, attempt):
    array = weights((4, 4))
    twice = [CheckpointState(weights={"w": halves(array, rank % 2), "b": array[0]}) for rank in range(4)]
    once = [CheckpointState(weights={"w": halves(array, rank), "b": array[0]}) for rank in range(2)]
    first, second = save_by_ranks(session, attempt, twice, 1), save_by_ranks(session, attempt, once, 2)
    assert first.manifest_digest == second.manifest_digest
    assert first.nbytes == second.nbytes == array.nbytes + array[0].nbytes
    assert len(first.tensors) == 3


def test_stages_of_a_pipeline_have_parameters_of_their_own(session, attempt):
    def stage(*names):
        states = {name: {"exp_avg": weights((2, 2), len(name))} for name in names}
        return CheckpointState(optimizer=OptimizerSnapshot(states, [{"lr": 0.1, "params": list(names)}]))

    checkpoint = save_by_ranks(session, attempt, [stage("a", "shared"), stage("shared", "bbb")])
    optimizer = load_checkpoint(session, checkpoint).optimizer
    assert optimizer.groups == [{"lr": 0.1, "params": ["a", "shared", "bbb"]}]
    assert set(optimizer.states) == {"a", "shared", "bbb"}


ARRAY = np.arange(16.0).reshape(4, 4)


@pytest.mark.parametrize(
    ("held", "error", "message"),
    [
        ([halves(ARRAY, 0), halves(ARRAY, 0)], RanksMissing, "8 of 16 elements are missing"),
        ([halves(ARRAY, 0), halves(ARRAY + 1, 0)], CheckpointError, "other values of the part"),
        ([ARRAY, ARRAY + 1], CheckpointError, "other values of it"),
        ([ARRAY, halves(ARRAY, 1)], CheckpointError, "different arrays"),
        ([halves(ARRAY, 0), Part(ARRAY[1:3], (1, 0), (4, 4))], CheckpointError, "overlap"),
        ([halves(ARRAY, 0), Part(ARRAY[2:, :2], (2, 0), (4, 4))], RanksMissing, "4 of 16 elements are missing"),
        ([halves(ARRAY, 0), halves(ARRAY.astype(np.float32), 1)], CheckpointError, "different arrays"),
        ([halves(ARRAY, 0), Part(ARRAY, (2, 0), (4, 4))], CheckpointError, "does not lie within"),
        ([[halves(ARRAY, 0), Part(ARRAY, (0, 0), (4, 4))]], CheckpointError, "one of them is the whole"),
    ],
)
def test_parts_that_are_no_whole_are_refused(session, attempt, held, error, message):
    with pytest.raises(error, match=message):
        save_by_ranks(session, attempt, [CheckpointState(weights={"w": each}) for each in held])


def test_numbers_must_agree(session, attempt):
    def stepped(step):
        return CheckpointState(optimizer=OptimizerSnapshot({"w": {"step": step}}, [{"params": ["w"]}]))

    with pytest.raises(CheckpointError, match="'w' 'step': another rank"):
        save_by_ranks(session, attempt, [stepped(3), stepped(4)])
    save_by_ranks(session, attempt, [stepped(3), stepped(3)], 2)


def test_a_rank_writes_once_and_only_to_what_is_pending(session, attempt):
    checkpoint = begin_checkpoint(session, attempt, 1, 1)
    write_rank(session, checkpoint, 0, state())
    with pytest.raises(CheckpointExists, match="a rank writes once"):
        write_rank(session, checkpoint, 0, state())
    for rank in (-1, 1):
        with pytest.raises(CheckpointError, match="count from 0"):
            write_rank(session, checkpoint, rank, state())
    publish_checkpoint(session, checkpoint)
    for call in (lambda: write_rank(session, checkpoint, 0, state()), lambda: publish_checkpoint(session, checkpoint)):
        with pytest.raises(CheckpointExists, match="is published"):
            call()
    with pytest.raises(CheckpointExists):
        begin_checkpoint(session, attempt, 1, 1)


@pytest.mark.parametrize("world_size", [0, -1, 32769])
def test_impossible_worlds_are_refused(session, attempt, world_size):
    with pytest.raises(CheckpointError, match="ranks cannot write"):
        begin_checkpoint(session, attempt, 1, world_size)


def test_ranks_must_count_the_same_world(session, attempt):
    begin_checkpoint(session, attempt, 1, 2)
    with pytest.raises(CheckpointError, match="by 2 ranks, not 3"):
        begin_checkpoint(session, attempt, 1, 3)


def test_what_a_dead_attempt_left_is_discarded(session, attempt):
    checkpoint = begin_checkpoint(session, attempt, 1, 2)
    write_rank(session, checkpoint, 0, sharded(state(), 0))
    kept = save_checkpoint(session, attempt, state(), 2)
    attempt.status = "lost"
    for call in (
        lambda: begin_checkpoint(session, attempt, 3, 2),
        lambda: write_rank(session, checkpoint, 1, sharded(state(), 1)),
        lambda: publish_checkpoint(session, checkpoint),
    ):
        with pytest.raises(AttemptLost):
            call()
    assert discard_pending(session, attempt) == 1
    assert latest_checkpoint(session, attempt.training_session) is kept
    assert count(session, "checkpoint_ranks") == 0
    with pytest.raises(CheckpointNotFound, match="was discarded"):
        write_rank(session, checkpoint.id, 1, sharded(state(), 1))


def test_a_rank_is_alive_while_its_block_lasts(database):
    attempt_id = database.transaction(lambda session: begin(session).id)

    def row():
        with database.session() as session:
            return session.scalars(select(TrainingRank)).one()

    with join_attempt(database, attempt_id, 1, 2, heartbeat_seconds=0.01):
        joined = row()
        deadline = time.monotonic() + 10
        while row().heartbeat_at == joined.heartbeat_at and time.monotonic() < deadline:
            time.sleep(0.01)
        assert row().heartbeat_at > joined.heartbeat_at
        assert (joined.status, joined.world_size) == ("running", 2)
    assert row().status == "completed"
    with pytest.raises(LookupError), join_attempt(database, attempt_id, 1, 2):
        {}["gone"]
    assert (row().status, row().error) == ("failed", "KeyError: 'gone'")


def test_a_rank_learns_that_its_attempt_was_lost(database):
    attempt_id = database.transaction(lambda session: begin(session).id)
    with join_attempt(database, attempt_id, 0, 1, heartbeat_seconds=0.01) as membership:
        membership.check()
        database.transaction(
            lambda session: session.execute(text("UPDATE arc_halo.training_attempts SET status = 'lost'")) and None
        )
        deadline = time.monotonic() + 10
        while not membership.is_lost and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(AttemptLost):
            membership.check()
    with pytest.raises(AttemptLost), join_attempt(database, attempt_id, 0, 1):
        pass
    with pytest.raises(AttemptLost), join_attempt(database, uuid.uuid4(), 0, 1):
        pass


@pytest.mark.parametrize("of", [1, 4])
def test_loading_needs_the_arrays_and_little_more(session, attempt, of):
    array = weights((6000, 1024))
    states = [CheckpointState(weights={"w": halves(array, rank, of)}) for rank in range(of)]
    checkpoint = save_by_ranks(session, attempt, states)
    load_checkpoint(session, checkpoint)
    tracemalloc.start()
    loaded = load_checkpoint(session, checkpoint)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert same(loaded.weights["w"], array)
    assert peak < array.nbytes + (20 << 20)

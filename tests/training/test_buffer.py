from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import MetricError
from arc_halo.training import buffer as buffer_module
from arc_halo.training.buffer import PointBuffer


class Spilled(list):
    def __call__(self, keys, points):
        self.append((keys[:], points))
        return True


def new_buffer(capacity=100, wake=lambda: None):
    spilled = Spilled()
    return PointBuffer(spilled, wake, capacity), spilled


def take(buffer):
    taken = buffer.take(lambda: 1)
    return [(taken.keys[index].name, step, value) for index, step, _, value, _ in taken.points.tolist()]


def log(buffer, metrics, step, epoch=None, *, scope="train", context=None):
    buffer.append(metrics, step, epoch, scope, context)


LOGGED = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("abcd"), st.floats(allow_nan=False), max_size=4), st.integers(0, 2**63 - 1)
    ),
    max_size=30,
)


@given(LOGGED, st.integers(1, 9))
def test_every_point_is_taken_or_spilled_in_order(logged, capacity):
    buffer, spilled = new_buffer(capacity)
    for metrics, step in logged:
        log(buffer, metrics, step)
    buffer.spill()
    found = [(keys[i].name, step, value) for keys, points in spilled for i, step, _, value, _ in points.tolist()]
    assert found == [(name, step, value) for metrics, step in logged for name, value in metrics.items()]
    assert buffer.logged == len(found)


def test_memory_is_bounded():
    buffer, spilled = new_buffer(capacity=10)
    for step in range(95):
        log(buffer, {"a": 1.0}, step)
    assert len(buffer._data) == 10 * 36
    assert [len(points) for _, points in spilled] == [10] * 9


def test_points_that_nobody_fetches_are_spilled(monkeypatch):
    buffer, spilled = new_buffer()
    log(buffer, {"a": 1.0}, 1)
    log(buffer, {"a": 2.0}, 2)
    monkeypatch.setattr(buffer_module, "SPILL_SECONDS", 0.0)
    log(buffer, {"a": 3.0}, 3)
    assert [points["step"].tolist() for _, points in spilled] == [[1, 2]]
    assert take(buffer) == [("a", 3, 3.0)]


def test_without_room_anywhere_the_oldest_are_dropped_and_counted():
    buffer = PointBuffer(lambda *_: False, lambda: None, 4)
    for step in range(10):
        log(buffer, {"a": 1.0}, step)
    buffer.spill()
    assert (buffer.dropped, [step for _, step, _ in take(buffer)]) == (8, [8, 9])


def test_half_full_wakes_the_writer_once():
    woken = []
    buffer, _ = new_buffer(10, lambda: woken.append(1))
    for step in range(9):
        log(buffer, {"a": 1.0}, step)
    assert woken == [1]


class Tensor:
    """As torch's: no axes, and a number by float() alone."""

    ndim = 0

    def __float__(self):
        return 0.25


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (Tensor(), 0.25),
        (np.float32(0.5), 0.5),
        (np.array(3), 3.0),
        (ml_dtypes.bfloat16(1.5), 1.5),
        (True, 1.0),
        (Fraction(1, 4), 0.25),
        (-math.inf, -math.inf),
    ],
)
def test_anything_that_is_one_number_is_taken(value, number):
    buffer, _ = new_buffer()
    log(buffer, {"a": value}, np.int64(4))
    assert take(buffer) == [("a", 4, number)]


def test_nan_stays():
    buffer, _ = new_buffer()
    log(buffer, {"a": math.nan}, 0)
    assert math.isnan(take(buffer)[0][2])


@pytest.mark.parametrize(
    "value", ["1.5", b"1", None, [1.0], np.ones(1), np.ones((2, 2)), 1j, np.complex64(1), 10**400, object()]
)
def test_what_is_not_one_number_is_refused_with_all_of_its_step(value):
    buffer, _ = new_buffer()
    with pytest.raises(MetricError, match="'bad' is"):
        log(buffer, {"good": 1.0, "bad": value}, 0)
    assert take(buffer) == []


@pytest.mark.parametrize("step", [-1, 2**63, 1.0, "1", None])
def test_a_step_that_is_none_is_refused(step):
    buffer, _ = new_buffer()
    with pytest.raises(MetricError, match="step"):
        log(buffer, {"a": 1.0}, step)


@pytest.mark.parametrize("epoch", [-0.5, math.inf, "1"])
def test_an_epoch_that_is_none_is_refused(epoch):
    buffer, _ = new_buffer()
    with pytest.raises(MetricError, match="epoch"):
        log(buffer, {"a": 1.0}, 1, epoch)


@pytest.mark.parametrize(
    ("name", "scope", "context"), [("", "train", None), ("a", "other", None), ("a", "train", {"x": object()})]
)
def test_a_key_that_is_none_is_refused(name, scope, context):
    buffer, _ = new_buffer()
    with pytest.raises(MetricError):
        log(buffer, {name: 1.0}, 1, scope=scope, context=context)
    assert take(buffer) == []


def test_equal_contexts_are_one_series():
    buffer, _ = new_buffer()
    for context in ({"b": 1, "a": 2}, {"a": 2.0, "b": 1}, {"a": np.int64(2), "b": 1}):
        log(buffer, {"x": 1.0}, 1, context=context)
    log(buffer, {"x": 1.0}, 1)
    taken = buffer.take(lambda: 1)
    assert [key.context for key in taken.keys] == ['{"a":2,"b":1}', "{}"]
    assert taken.points["series_id"].tolist() == [0, 0, 0, 1]


def test_where_training_is():
    buffer, _ = new_buffer()
    log(buffer, {"a": 1.0}, 5, 0.5)
    log(buffer, {"a": 1.0}, 3, 0.3)
    assert (buffer.last_step, buffer.last_epoch) == (5, 0.5)
    log(buffer, {"a": 1.0}, 6, math.nan)
    assert (buffer.last_step, buffer.last_epoch) == (6, 0.5)

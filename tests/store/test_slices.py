from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arc_halo.errors import SliceError
from arc_halo.registry import import_model, read_tensor
from arc_halo.store import Wanted
from tests.fixtures.tensors import fetched_chunks, put, random_array, rows, same

in_one_transaction = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SHAPES = [(7,), (7, 3), (2500, 301), (3, 400, 500), (2, 700_000), (0, 4), (4, 0)]
bounds = st.none() | st.integers(-9, 9) | st.integers(-3000, 3000) | st.sampled_from([2**40, -(2**70)])
steps = st.none() | st.integers(-5, 5).filter(bool) | st.sampled_from([999, -999, 2**65])


@in_one_transaction
@given(st.sampled_from(SHAPES), st.builds(slice, bounds, bounds, steps))
def test_slices_are_those_of_numpy(session, shape, selected):
    array = random_array(ml_dtypes.bfloat16, shape)
    (wanted,) = put(session, array, compression="none")
    assert same(rows(session, wanted, selected), array[selected])


@in_one_transaction
@given(st.sampled_from(SHAPES), st.integers(-10, 10) | st.integers(-3000, 3000))
def test_a_row_is_that_of_numpy_or_an_error(session, shape, index):
    array = random_array(np.float16, shape)
    (wanted,) = put(session, array, compression="none")
    if -shape[0] <= index < shape[0]:
        got = rows(session, wanted, index)
        assert np.asarray(got).tobytes() == np.asarray(array[index]).tobytes()
        assert got.shape == array[index].shape
    else:
        with pytest.raises(SliceError, match=f"{shape[0]} rows"):
            rows(session, wanted, index)


def test_a_scalar_has_no_rows(session):
    (wanted,) = put(session, np.float32(3).reshape(()))
    with pytest.raises(SliceError, match="scalar"):
        rows(session, wanted, 0)


@pytest.mark.parametrize("selected", [1.5, "1", None, [1, 2], (0, 1), np.arange(2)], ids=repr)
def test_what_is_no_slice_is_refused(session, selected):
    (wanted,) = put(session, np.zeros((3, 2), np.float32))
    with pytest.raises(SliceError, match="int or a slice"):
        rows(session, wanted, selected)


def test_a_slice_reads_only_the_chunks_that_hold_it(session):
    array = random_array(np.float32, (20_000, 256))  # 20 chunks, 1024 rows each
    (wanted,) = put(session, array)
    with fetched_chunks(session) as fetched:
        assert same(rows(session, wanted, slice(5000, 5010)), array[5000:5010])
        assert same(rows(session, wanted, slice(1020, 1030)), array[1020:1030])
        assert same(rows(session, wanted, -1), array[-1])
        assert rows(session, wanted, slice(9, 3)).shape == (0, 256)
    assert fetched == [1, 2, 1]


def test_a_slice_with_a_long_step_reads_no_chunk_without_a_row_of_it(session):
    array = random_array(np.float32, (20_000, 256))
    (wanted,) = put(session, array)
    with fetched_chunks(session) as fetched:
        assert same(rows(session, wanted, slice(100, None, 10_000)), array[100::10_000])
    assert sum(fetched) == 2


@pytest.mark.parametrize("selected", [slice(None), slice(None, None, -1), slice(1, 7)], ids=repr)
def test_neighbours_that_share_a_chunk_bring_it_once(session, selected):
    array = random_array(np.float32, (8, 3, 100_000))  # a chunk is two thirds of a row
    (wanted,) = put(session, array, compression="none")
    with fetched_chunks(session) as fetched:
        assert same(rows(session, wanted, selected), array[selected])
    assert sum(fetched) == (12 if selected.start is None else 10)


@pytest.mark.parametrize("columns", [2, 4, 5])
@pytest.mark.parametrize("selected", [1, -1, slice(None, None, 2), slice(None, None, -1), slice(2, 6)], ids=repr)
def test_rows_of_packed_elements_are_whole_rows_or_refused(session, tmp_path, columns, selected):
    packed = random_array(np.uint8, (8 * columns // 2,))
    path = tmp_path / "packed.safetensors"
    path.write_bytes(_file_of_f4(8, columns, packed.tobytes()))
    model = import_model(session, path, name="packed")
    if columns % 2 and selected != slice(2, 6):
        with pytest.raises(SliceError, match="share a byte"):
            read_tensor(session, model, "a", selected)
    else:
        expected = packed.reshape(8, -1)[selected] if not columns % 2 else packed[5:15]
        assert read_tensor(session, model, "a", selected).tobytes() == expected.tobytes()


def _file_of_f4(row_count, columns, data):
    header = b'{"a":{"dtype":"F4","shape":[%d,%d],"data_offsets":[0,%d]}}' % (row_count, columns, len(data))
    return len(header).to_bytes(8, "little") + header + data


def test_numpy_integers_are_integers(session):
    array = random_array(np.int32, (5, 2))
    (wanted,) = put(session, array)
    assert isinstance(wanted, Wanted)
    assert same(rows(session, wanted, np.int64(-2)), array[-2])

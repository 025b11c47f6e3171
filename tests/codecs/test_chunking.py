from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.codecs.chunking import TARGET_NBYTES, ChunkLayout, chunk_nbytes
from arc_halo.dtypes import BLOCK_DTYPES, DTYPES, by_name
from arc_halo.errors import SliceError, TensorError

layouts = st.builds(
    lambda dtype, leading, last: ChunkLayout.of(
        dtype, (*leading, last // dtype.block_elements * dtype.block_elements if dtype.bits >= 8 else last * 4)
    ),
    st.sampled_from([*DTYPES.values(), *BLOCK_DTYPES.values()]),
    st.lists(st.integers(0, 3000), max_size=2),
    st.integers(0, 4000),
)


@given(layouts)
def test_chunks_fill_the_tensor_each_byte_once(layout):
    count = len(layout)
    assert (
        layout.chunk_nbytes * (count - 1) < layout.nbytes <= layout.chunk_nbytes * count or count == layout.nbytes == 0
    )
    for index in {0, 1, count - 2, count - 1} & set(range(count)):
        assert layout[index].offset == (layout[index - 1].stop if index else 0)
        assert layout[index].nbytes > 0
        assert layout[index].stop == layout.nbytes or index < count - 1


@given(layouts)
def test_chunks_are_whole_rows_of_at_most_the_target(layout):
    row_bits = layout.shape[-1] // layout.dtype.block_elements * layout.dtype.bits
    assert 0 < layout.chunk_nbytes <= TARGET_NBYTES
    assert layout.chunk_nbytes * 8 % layout.dtype.bits == 0
    if 0 < row_bits <= TARGET_NBYTES:
        assert layout.chunk_nbytes * 8 % row_bits == 0
        assert TARGET_NBYTES - layout.chunk_nbytes < row_bits


@given(layouts.filter(lambda layout: layout.nbytes > 0), st.data())
def test_a_byte_range_reads_just_the_chunks_that_hold_it(layout, data):
    start = data.draw(st.integers(0, layout.nbytes))
    stop = data.draw(st.integers(start, layout.nbytes))
    indexes = layout.chunks_for(start, stop)
    if start == stop:
        assert not indexes
    else:
        assert layout[indexes[0]].offset <= start < layout[indexes[0]].stop
        assert layout[indexes[-1]].offset < stop <= layout[indexes[-1]].stop


@pytest.mark.parametrize(
    ("name", "shape", "nbytes", "count"),
    [
        ("F32", (), TARGET_NBYTES, 1),
        ("F32", (0,), TARGET_NBYTES, 0),
        ("F32", (7, 0, 3), TARGET_NBYTES // 12 * 12, 0),
        ("F32", (30522, 384), 682 * 384 * 4, 45),
        ("BF16", (128256, 4096), TARGET_NBYTES, 1002),
        ("F32", (2, 400_000), TARGET_NBYTES, 4),
        ("F32", (8, 14336, 4096), TARGET_NBYTES, 1792),
        ("F4", (4, 3), TARGET_NBYTES // 3 * 3, 1),
        ("F6_E2M3", (4_000_000,), TARGET_NBYTES // 3 * 3, 3),
    ],
)
def test_chunk_size_and_count(name, shape, nbytes, count):
    dtype = by_name(name)
    assert chunk_nbytes(shape, dtype) == nbytes
    assert len(ChunkLayout.of(dtype, shape)) == count
    assert sum(chunk.nbytes for chunk in ChunkLayout.of(dtype, shape)) == prod(shape) * dtype.bits // 8


def test_first_row_is_the_row_in_which_a_chunk_begins():
    assert [chunk.first_row for chunk in ChunkLayout.of(by_name("F32"), (2, 700, 384))] == [0, 682, 1364]
    assert [chunk.first_row for chunk in ChunkLayout.of(by_name("F32"), (2, 400_000))] == [0, 0, 1, 1]


def test_a_grown_tensor_keeps_its_full_chunks():
    before, after = (list(ChunkLayout.of(by_name("F32"), (rows, 384))) for rows in (30522, 30530))
    assert before[:-1] == after[: len(before) - 1]


def test_rows_of_the_first_axis():
    layout = ChunkLayout.of(by_name("F32"), (10, 3, 5))
    assert layout.row_bytes(2, 4) == (120, 240)
    assert layout.row_bytes(4, 4) == (240, 240)
    assert ChunkLayout.of(by_name("F4"), (4, 3)).row_bytes(2, 4) == (3, 6)


@pytest.mark.parametrize("rows", [(-1, 2), (3, 2), (0, 11)])
def test_rows_outside_are_refused(rows):
    with pytest.raises(SliceError, match="rows"):
        ChunkLayout.of(by_name("F32"), (10, 3)).row_bytes(*rows)


@pytest.mark.parametrize(("name", "shape"), [("F32", ()), ("F4", (4, 3))])
def test_rows_that_cannot_be_cut_out_are_refused(name, shape):
    with pytest.raises(SliceError, match="whole"):
        ChunkLayout.of(by_name(name), shape).row_bytes(0, 1)


@pytest.mark.parametrize("span", [(-1, 2), (3, 2), (0, 121)])
def test_bytes_outside_are_refused(span):
    with pytest.raises(SliceError, match="bytes"):
        ChunkLayout.of(by_name("F32"), (10, 3)).chunks_for(*span)


def test_chunks_outside_are_refused():
    with pytest.raises(IndexError):
        ChunkLayout.of(by_name("F32"), (10, 3))[1]


@pytest.mark.parametrize(("name", "shape"), [("F4", (3,)), ("F6_E2M3", (2,)), ("F32", (1 << 40, 1 << 40))])
def test_sizes_that_cannot_be_stored_are_refused(name, shape):
    with pytest.raises(TensorError):
        ChunkLayout.of(by_name(name), shape)


def test_a_stored_chunk_size_of_nothing_is_refused():
    with pytest.raises(TensorError, match="chunk size"):
        ChunkLayout(by_name("F32"), (3,), 0)


@pytest.mark.parametrize(("name", "shape", "count"), [("Q4_K", (32000, 4096), 71), ("Q8_0", (3, 1 << 25), 103)])
def test_blocks_are_never_cut(name, shape, count):
    layout = ChunkLayout.of(by_name(name), shape)
    block_nbytes = by_name(name).bits // 8
    assert len(layout) == count
    assert all(chunk.offset % block_nbytes == chunk.nbytes % block_nbytes == 0 for chunk in layout)
    assert layout[1].first_row == (layout.chunk_nbytes // (4096 // 256 * 144) if name == "Q4_K" else 0)


@pytest.mark.parametrize("shape", [(), (3, 33), (64, 1)])
def test_rows_of_parts_of_blocks_are_refused(shape):
    with pytest.raises(TensorError, match="no whole blocks"):
        ChunkLayout.of(by_name("Q8_0"), shape)


def test_rows_of_a_vector_are_whole_blocks():
    layout = ChunkLayout.of(by_name("Q8_0"), (96,))
    assert layout.row_bytes(32, 96) == (34, 102)
    with pytest.raises(SliceError, match="share a byte or block"):
        layout.row_bytes(0, 5)

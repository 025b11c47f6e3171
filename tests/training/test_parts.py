"""Whether blocks make up an array, told as counting its elements tells."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import CheckpointError
from arc_halo.training.parts import Part, explain_cover, parts_of


@st.composite
def blocks_within(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=0, max_size=3)))
    blocks = []
    for _ in range(draw(st.integers(0, 6))):
        bounds = [sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in shape]
        block = tuple(start for start, _ in bounds), tuple(stop - start for start, stop in bounds)
        if np.prod(block[1]):
            blocks.append(block)
    return shape, blocks


@given(blocks_within())
def test_blocks_are_the_whole_if_each_element_is_in_one(given_blocks):
    shape, blocks = given_blocks
    counted = np.zeros(shape, int)
    for offsets, size in blocks:
        counted[tuple(slice(at, at + length) for at, length in zip(offsets, size, strict=True))] += 1
    assert (explain_cover(shape, blocks) is None) == bool((counted == 1).all())


def test_many_blocks_are_told_apart():
    rows = [((start, 0), (1, 8)) for start in range(1000)]
    assert explain_cover((1000, 8), rows) is None
    assert "missing" in explain_cover((1001, 8), rows)
    assert "overlap" in explain_cover((1000, 8), [*rows, ((600, 3), (2, 2))])


@pytest.mark.parametrize(
    ("offsets", "full_shape"), [((0,), (4, 4)), ((3, 0), (4, 4)), ((-1, 0), (4, 4)), ((0, 0), (1, 4))]
)
def test_a_part_lies_within_its_whole(offsets, full_shape):
    with pytest.raises(CheckpointError, match="does not lie within"):
        parts_of("w", Part(np.zeros((2, 4)), offsets, full_shape))


def test_parts_without_elements_are_left_out():
    whole, empty = np.zeros((2, 3)), np.zeros((0, 3))
    assert parts_of("w", Part(empty, (2, 0), (2, 3))) == []
    ((array, offsets, full_shape),) = parts_of("w", [Part(empty, (2, 0), (2, 3)), Part(whole, (0, 0), (2, 3))])
    assert (array is whole, offsets, full_shape) == (True, None, None)


def test_of_nothing_any_part_is_the_whole():
    parts = [Part(np.zeros((0, 1), np.float16), (0, at), (0, 3)) for at in range(3)]
    ((array, offsets, full_shape),) = parts_of("w", parts)
    assert (array.shape, array.dtype, offsets, full_shape) == ((0, 3), np.float16, None, None)

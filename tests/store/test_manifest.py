from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.store.manifest import seal

digests = st.binary(min_size=32, max_size=32)
manifests = st.tuples(
    digests,
    st.sampled_from(["F32", "F16", "BF16", "F8_E4M3"]),
    st.lists(st.integers(0, 2**40), max_size=4),
    st.integers(1, 2**21),
    st.lists(digests, max_size=4),
)


@given(manifests, manifests)
def test_seals_are_equal_exactly_for_equal_manifests(left, right):
    assert (seal(*left) == seal(*right)) == (left == right)


@given(manifests.filter(lambda manifest: len(set(manifest[4])) > 1))
def test_the_order_of_chunks_counts(manifest):
    *rest, chunks = manifest
    assert seal(*rest, chunks) != seal(*rest, chunks[::-1]) or chunks == chunks[::-1]


@pytest.mark.parametrize(
    ("shape", "chunks"), [([2], [b"\0" * 32]), ([2, 0], []), ([], [b"\0" * 32]), ([2], [b"\0" * 32] * 2)]
)
def test_dimensions_do_not_run_into_chunks(shape, chunks):
    others = [([], []), ([2, 0, 0, 0, 0], []), ([0], [b"\0" * 32])]
    assert seal(b"d" * 32, "F32", shape, 8, chunks) not in {seal(b"d" * 32, "F32", s, 8, c) for s, c in others}

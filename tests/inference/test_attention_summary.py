"""Summaries of attention, beside ones that are computed number by number."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import CacheError
from arc_halo.inference.attention import summarise_attention, summary
from tests.inference.patterns import attention, looking_at


def naive(matrix, tokens):
    """Entropies, and the other figures, of one head."""
    n = len(tokens)
    entropies = [-sum(w * math.log(w) for w in row if w > 0) for row in matrix]
    distance = sum(matrix[i][j] * abs(i - j) for i in range(n) for j in range(n)) / n
    first = sum(row[0] for row in matrix) / n
    previous = sum(matrix[i][i - 1] for i in range(1, n)) / (n - 1) if n > 1 else None
    behind = {i: [j + 1 for j in range(i - 1) if tokens[j] == tokens[i]] for i in range(n)}
    shares = [sum(matrix[i][at] for at in places) for i, places in behind.items() if places]
    return entropies, distance, first, previous, sum(shares) / len(shares) if shares else None


@st.composite
def requests(draw):
    count = draw(st.integers(1, 12))
    tokens = draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    seed, causal, heads = draw(st.integers(0, 2**32 - 1)), draw(st.booleans()), draw(st.integers(1, 3))
    return tokens, attention(heads, count, causal=causal, seed=seed, sharpness=draw(st.sampled_from([0, 1, 30])))


@given(requests(), st.integers(1, 40), st.integers(0, 14))
def test_figures_are_those_of_the_definitions(request_, block_elements, top_count):
    tokens, matrices = request_
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "_BLOCK_ELEMENTS", block_elements)
        found = summarise_attention(matrices, tokens, top_count=top_count)
    for head, matrix in enumerate(matrices.astype(np.float64).tolist()):
        entropies, *figures = naive(matrix, tokens)
        np.testing.assert_allclose(found.entropies[head], entropies, atol=1e-5)
        assert found.mean_entropy[head] == pytest.approx(np.mean(entropies), abs=1e-5)
        names = ("mean_distance", "first_token_share", "previous_token_share", "induction_share")
        for name, expected in zip(names, figures, strict=True):
            value = getattr(found, name)
            assert (value is None) == (expected is None)
            assert expected is None or value[head] == pytest.approx(expected, abs=1e-5)


@given(requests(), st.integers(0, 14))
def test_the_strongest_keys_are_those_of_a_stable_sort(request_, top_count):
    tokens, matrices = request_
    found = summarise_attention(matrices, tokens, top_count=top_count)
    expected = np.argsort(-matrices, axis=2, kind="stable")[:, :, :top_count]
    np.testing.assert_array_equal(found.top_positions, expected)
    np.testing.assert_array_equal(found.top_weights, np.take_along_axis(matrices, expected, axis=2))
    assert found.top_count == min(top_count, len(tokens))


@given(requests())
def test_all_keys_are_the_matrix(request_):
    tokens, matrices = request_
    found = summarise_attention(matrices, tokens, top_count=99)
    np.testing.assert_array_equal(np.stack([found.strongest(head) for head in range(len(matrices))]), matrices)


def test_an_induction_head_is_found():
    tokens = [*range(50), *range(50)]
    places = [max(query - 49, 0) for query in range(100)]  # of the first time, what came next
    matrices = np.stack([looking_at(places), looking_at([max(query - 1, 0) for query in range(100)])])
    found = summarise_attention(matrices, tokens)
    # The query of the token 0 looks at place 1, of 49 at place 50: all fifty find what followed.
    assert found.induction_share.tolist() == [1.0, 0.0]
    assert found.previous_token_share.tolist() == [pytest.approx(1 / 99), 1.0]
    assert found.first_token_share.tolist() == [0.5, 0.02]
    assert found.mean_entropy.tolist() == [0.0, 0.0]


def test_a_token_right_after_itself_is_no_induction():
    assert summarise_attention(looking_at([0, 1])[None], [7, 7]).induction_share is None
    assert summarise_attention(looking_at([0, 1, 1])[None], [7, 7, 7]).induction_share.tolist() == [1.0]


def test_evenly_shared_attention_has_the_entropy_of_the_number_of_keys():
    found = summarise_attention(np.full((1, 8, 8), 1 / 8, np.float32), range(8))
    np.testing.assert_allclose(found.entropies, math.log(8), rtol=1e-6)
    assert found.top_positions[0, 5].tolist() == list(range(8))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_types_are_taken_with_their_rounding(dtype):
    matrices = attention(2, 300, seed=1)
    found = summarise_attention(matrices.astype(dtype), np.arange(300))
    expected = summarise_attention(matrices, np.arange(300))
    np.testing.assert_allclose(found.mean_entropy, expected.mean_entropy, rtol=0.02)


def test_a_matrix_of_another_byte_order_is_the_same():
    matrices = attention(1, 5)
    swapped = summarise_attention(matrices.astype(">f4"), range(5))
    np.testing.assert_array_equal(swapped.entropies, summarise_attention(matrices, range(5)).entropies)


def spoiled(place, value):
    matrices = attention(2, 4)
    matrices[place] = value
    return matrices


@pytest.mark.parametrize(
    ("matrices", "tokens", "message"),
    [
        (spoiled((1, 2, 0), np.nan), range(4), "head 1, query 2, sums to nan"),
        (spoiled((1, 2, 0), np.inf), range(4), "head 1, query 2, sums to inf"),
        (spoiled((0, 3), [0.5, 0.5, 0.5, 0]), range(4), "sums to 1.5, not to 1"),
        (spoiled((0, 3), [1.5, -0.5, 0, 0]), range(4), "negative weight"),
        (attention(2, 4) * np.float32(1.001), range(4), "in the type it was computed in"),
        (attention(2, 4), range(5), "of 4 tokens, token_ids has 5"),
        (attention(2, 4)[:, :3], range(4), "a query and a key for each token"),
        (attention(2, 4)[0], range(4), "give \\[heads, queries, keys\\]"),
        (attention(2, 4)[:0], range(4), "give \\[heads, queries, keys\\]"),
        (attention(2, 4).tolist(), range(4), "is a builtins.list"),
        (attention(2, 4).astype(np.int64), range(4), "is of int64"),
        (attention(2, 4), [], "at least one"),
        (attention(2, 4), [0.5, 1, 2, 3], "float64"),
        (attention(2, 4), [0, 1, 2, 2**31], "must be from 0"),
        (attention(2, 4), [0, 1, 2, -1], "must be from 0"),
    ],
)
def test_what_is_no_attention_is_refused(matrices, tokens, message):
    with pytest.raises(CacheError, match=message):
        summarise_attention(matrices, list(tokens))


@pytest.mark.parametrize("top_count", [-1, 2**15])
def test_a_number_of_keys_that_cannot_be_kept_is_refused(top_count):
    with pytest.raises(CacheError, match="top_count"):
        summarise_attention(attention(1, 4), range(4), top_count=top_count)

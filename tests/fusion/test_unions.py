"""Different vocabularies are brought to one by the texts of their tokens."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from arc_halo.fusion.unions import END, Vocabulary, best_ids, to_union


def test_tokens_are_matched_by_text_and_the_rest_is_shared():
    left = Vocabulary(["a", "b", "<end>", "rare"], frozenset({2}))
    right = Vocabulary(["</s>", "b", "c", "odd"], frozenset({0}))
    logits = [np.log(np.array([0.5, 0.2, 0.1, 0.2], np.float32)), np.log(np.array([0.2, 0.1, 0.6, 0.1], np.float32))]
    texts, shares = to_union([left, right], logits, 1)
    assert texts == [END, "a", "c"]
    # Of the left one 0.4 is outside the union, and "c" the only text it has no token for; the right one alike.
    np.testing.assert_allclose(np.exp(shares), [[0.1, 0.5, 0.4], [0.2, 0.2, 0.6]], rtol=1e-5)


def test_the_rest_is_left_out_where_all_of_the_union_is_known():
    vocabulary = Vocabulary(["a", "b", "c", "."], frozenset({3}))
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    texts, shares = to_union([vocabulary] * 2, [logits] * 2, 2)
    assert texts == [END, "a", "b"]
    np.testing.assert_allclose(np.exp(shares), [[0.1, 0.4, 0.3]] * 2, rtol=1e-5)


def test_tokens_without_a_text_of_their_own_match_nothing():
    vocabulary = Vocabulary(["\ufffd", "a", "a", ""], frozenset())
    texts, shares = to_union([vocabulary], [np.array([9, 1, 2, 8], np.float32)], 4)
    assert texts == [END, "a"]
    assert vocabulary.ids == {"a": 1}
    assert shares[0, 0] == -np.inf


def test_vocabularies_are_the_same_by_their_tokens_and_ends():
    vocabulary = Vocabulary(["a", "b"], frozenset({1}))
    assert vocabulary.is_same_as(Vocabulary(("a", "b"), frozenset({1})))
    assert not vocabulary.is_same_as(Vocabulary(["a", "b"], frozenset({0})))
    assert not vocabulary.is_same_as(Vocabulary(["b", "a"], frozenset({1})))


@given(
    arrays(np.float32, st.integers(1, 300), elements=st.sampled_from([-np.inf, *np.arange(40.0)])), st.integers(1, 320)
)
def test_the_best_are_those_of_a_stable_sort(logits, count):
    assert best_ids(logits, count).tolist() == np.argsort(-logits, kind="stable")[:count].tolist()


@given(st.data())
def test_no_member_gives_more_than_it_has(data):
    members = data.draw(st.integers(1, 3))
    words = st.lists(st.text("abc", min_size=1, max_size=2), min_size=2, max_size=12)
    vocabularies = [Vocabulary(data.draw(words), frozenset({0})) for _ in range(members)]
    logits = [
        data.draw(arrays(np.float32, len(each.texts), elements=st.floats(-9, 9, width=32))) for each in vocabularies
    ]
    texts, shares = to_union(vocabularies, logits, data.draw(st.integers(1, 5)))
    assert len(set(texts)) == len(texts)
    assert (np.exp(shares).sum(axis=1) <= 1 + 1e-4).all()
    assert (shares[:, 0] > -np.inf).all()

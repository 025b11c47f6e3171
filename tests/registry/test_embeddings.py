from __future__ import annotations

import uuid

import numpy as np
import pytest
from sqlalchemy import event, text

from arc_halo.errors import TensorError, TensorNotFound, TokenNotFound
from arc_halo.registry import (
    add_embeddings,
    create_model,
    dequantize_model,
    find_similar_tokens,
    import_model,
    prune_model,
    quantize_model,
    read_tensor,
    search_embeddings,
)
from arc_halo.schema import Embedding
from tests.fixtures.models import VOCABULARY, bert, gpt2, write_folder, write_json
from tests.fixtures.tensors import count, same, weights

VECTORS, HALVES, BITS, UNINDEXED = 384, 2048, 4096, 100


def cosine(matrix, vector):
    matrix, vector = np.float64(matrix), np.float64(vector)
    return matrix @ vector / (np.linalg.norm(matrix, axis=-1) * np.linalg.norm(vector))


def ranked(matrix, vector, k):
    return np.argsort(-cosine(matrix, vector), kind="stable")[:k].tolist()


@pytest.fixture
def minibert(session, tmp_path):
    return import_model(session, write_folder(bert(), tmp_path / "bert"), name="minibert")


def test_similar_tokens_are_those_of_numpy(session, minibert):
    matrix = read_tensor(session, minibert, "embeddings.word_embeddings.weight")
    king = VOCABULARY.index("king")
    found = find_similar_tokens(session, minibert, "king", 5)
    assert repr(found[0]).startswith("Match(label=")
    assert str(found[0].owner_id) not in repr(found)
    expected = [row for row in ranked(matrix, matrix[king], 6) if row != king]
    assert [match.row_index for match in found] == expected
    assert [match.label for match in found] == [VOCABULARY[row] for row in expected]
    assert [match.similarity for match in found] == pytest.approx(cosine(matrix[expected], matrix[king]), abs=1e-6)


def test_all_other_tokens_are_found(session, minibert):
    assert len(find_similar_tokens(session, minibert, "king", 100)) == len(VOCABULARY) - 1


def test_an_unknown_token_is_said_with_its_neighbours(session, minibert):
    with pytest.raises(TokenNotFound, match=r"'kings'; tokens that begin alike: 'king'"):
        find_similar_tokens(session, minibert, "kings")
    with pytest.raises(TokenNotFound, match="shorter or more common"):
        find_similar_tokens(session, minibert, "zyzzyva%_")


def test_a_model_without_embeddings_says_so(session, tmp_path):
    model = import_model(session, write_folder(bert(), tmp_path / "bert"), name="plain", embeddings=False)
    with pytest.raises(TensorNotFound, match="import it again"):
        find_similar_tokens(session, model, "king")


def test_a_word_is_found_as_byte_pairs_spell_it(session, tmp_path):
    folder = write_folder(gpt2(), tmp_path / "gpt2")
    vocabulary = {"king": 0, "\u0120king": 1, "\u0120queen": 2, "ing": 3}
    write_json(folder / "tokenizer.json", {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}})
    model = import_model(session, folder, name="gpt2")
    assert {match.row_index for match in find_similar_tokens(session, model, "king", 100)} == set(range(12)) - {1}
    assert find_similar_tokens(session, model, "ing")[0].row_index != 3


EMBEDDING = "embeddings.word_embeddings.weight"
MADE = {
    "dequantised": lambda session, model: dequantize_model(session, quantize_model(session, model, include=EMBEDDING)),
    "pruned": lambda session, model: prune_model(session, model, 0.5, include=EMBEDDING),
    "by a pattern": lambda session, model: prune_model(session, model, pattern="2:4", include="embeddings.*"),
    "both": lambda session, model: prune_model(session, MADE["dequantised"](session, model), 0.5, include=EMBEDDING),
}


@pytest.mark.parametrize("way", MADE)
def test_changed_embeddings_are_searched_as_they_are_now(session, minibert, way):
    made = MADE[way](session, minibert)
    matrix = read_tensor(session, made, EMBEDDING)
    assert not same(matrix, read_tensor(session, minibert, EMBEDDING))
    king = VOCABULARY.index("king")
    found = find_similar_tokens(session, made, "king", 5)
    expected = [row for row in ranked(matrix, matrix[king], 6) if row != king]
    assert [match.row_index for match in found] == expected
    assert [match.label for match in found] == [VOCABULARY[row] for row in expected]
    assert [match.similarity for match in found] == pytest.approx(cosine(matrix[expected], matrix[king]), abs=1e-6)


def test_codes_are_not_searched(session, minibert):
    for scheme in ("int8", "fp8", "nf4"):
        made = quantize_model(session, minibert, scheme, include=EMBEDDING)
        with pytest.raises(TensorNotFound, match="search the version that it was made from"):
            find_similar_tokens(session, made, "king")


def test_what_was_imported_without_embeddings_gets_none(session, tmp_path):
    model = import_model(session, write_folder(bert(), tmp_path / "bert"), name="plain", embeddings=False)
    for make in MADE.values():
        make(session, model)
    assert count(session, "embeddings") == 0


def test_embeddings_that_are_too_large_are_not_made_searchable(session, minibert, monkeypatch):
    before = count(session, "embeddings")
    monkeypatch.setattr("arc_halo.registry.searchable.EMBEDDINGS_NBYTES", 100)
    MADE["pruned"](session, minibert)
    assert count(session, "embeddings") == before


def test_models_that_share_the_tensor_share_its_rows(session, tmp_path, minibert):
    arrays = bert().arrays() | {"pooler.dense.bias": weights((16,))}
    other = import_model(session, write_folder(bert(), tmp_path / "other", arrays=arrays), name="other")
    assert find_similar_tokens(session, other, "king") == find_similar_tokens(session, minibert, "king")


@pytest.mark.parametrize("kind", ["token", "position", "segment"])
def test_kinds_of_weights_are_searched(session, minibert, kind):
    names = {"token": "word_embeddings", "position": "position_embeddings", "segment": "token_type_embeddings"}
    matrix = read_tensor(session, minibert, f"embeddings.{names[kind]}.weight")
    found = search_embeddings(session, kind, matrix[1], 2)
    assert [match.row_index for match in found] == ranked(matrix, matrix[1], 2)
    assert found[0].similarity == pytest.approx(1)


@pytest.mark.parametrize("kind", ["text", "run", "tensor"])
@pytest.mark.parametrize("dimension", [UNINDEXED, VECTORS, HALVES, BITS])
def test_kinds_across_owners_are_searched_in_every_dimension(session, kind, dimension):
    first, second = weights((20, dimension), 1), weights((20, dimension), 2)
    owner = add_embeddings(session, kind, first, labels=[f"a{index}" for index in range(20)])
    other = add_embeddings(session, kind, second)
    add_embeddings(session, "text" if kind == "run" else "run", first)
    asked = first[7] + second[3] * 0.5
    near, next_to = search_embeddings(session, kind, asked, 2)
    assert (near.label, near.row_index, near.owner_id) == ("a7", 7, owner)
    assert (next_to.label, next_to.row_index, next_to.owner_id) == (None, 3, other)
    assert near.similarity == pytest.approx(cosine(first[7], asked), abs=1e-5)


def test_only_vectors_of_the_same_dimension_are_compared(session):
    for dimension in (3, 4):
        add_embeddings(session, "text", np.eye(dimension))
    assert len(search_embeddings(session, "text", [1, 0, 0], 10)) == 3


@pytest.mark.parametrize("dimension", [UNINDEXED, VECTORS])
def test_filters_do_not_starve_the_search(session, dimension):
    matrix = weights((300, dimension))
    owner = add_embeddings(session, "text", matrix, labels=["rare" if row % 100 == 99 else "x" for row in range(300)])
    add_embeddings(session, "text", matrix)
    found = search_embeddings(session, "text", matrix[0], 10, where=Embedding.label == "rare")
    assert sorted(match.row_index for match in found) == [99, 199, 299]
    within = search_embeddings(session, "text", matrix[5], 4, owner_id=owner)
    assert [match.row_index for match in within] == ranked(matrix, matrix[5], 4)
    assert {match.owner_id for match in within} == {owner}


def test_vectors_are_added_after_those_an_owner_has(session):
    owner = uuid.uuid4()
    for part in (0, 2):
        assert add_embeddings(session, "run", np.eye(4)[part : part + 2], owner_id=owner) == owner
    found = {match.row_index: match for match in search_embeddings(session, "run", np.eye(4)[3], 4, owner_id=owner)}
    assert found[3].similarity == pytest.approx(1)
    assert sorted(found) == [0, 1, 2, 3]


@pytest.mark.parametrize(("kind", "index_kind"), [(VECTORS, "vector"), (HALVES, "halfvec"), (BITS, "bit")])
def test_the_index_of_the_dimension_serves_the_search(session, kind, index_kind):
    matrix = weights((40, kind))
    add_embeddings(session, "text", matrix)
    for setting in ("enable_seqscan", "enable_sort", "enable_bitmapscan"):
        session.execute(text(f"SET LOCAL {setting} = off"))
    indexes = used_indexes(session, lambda: search_embeddings(session, "text", matrix[0], 3))
    definitions = session.scalars(
        text("SELECT indexdef FROM pg_indexes WHERE indexname = ANY(:names)"), {"names": indexes}
    ).all()
    assert any("USING hnsw" in each and index_kind in each and str(kind) in each for each in definitions)


def used_indexes(session, search):
    """Names of the indexes in the plan of the last SELECT that a search sends."""
    sent = []

    def remember(_connection, _cursor, statement, parameters, *_rest):
        sent.append((statement, parameters))

    event.listen(session.get_bind(), "before_cursor_execute", remember)
    search()
    event.remove(session.get_bind(), "before_cursor_execute", remember)
    statement, parameters = sent[-1]
    ((plan,),) = session.connection().exec_driver_sql("EXPLAIN (FORMAT JSON) " + statement, parameters).all()
    return list(names_in(plan))


def names_in(plan):
    if isinstance(plan, list):
        for each in plan:
            yield from names_in(each)
    elif isinstance(plan, dict):
        yield from ([plan["Index Name"]] if "Index Name" in plan else [])
        for each in plan.values():
            yield from names_in(each)


@pytest.mark.parametrize(
    "vectors",
    [[], [[]], [1.0, 2.0], [[[1.0]]], [[np.nan]], [[np.inf]], [[1e300]], np.zeros((1, 16_001)), [["a"]],
     np.full((1, HALVES), 1e6), [[1.0], [1.0, 2.0]], [[1j]]],
    ids=["none", "empty", "one axis", "three", "NaN", "Inf", "float64", "long", "text", "half", "ragged", "complex"],
)  # fmt: skip
def test_vectors_that_cannot_be_searched_are_refused(session, vectors):
    with pytest.raises(TensorError):
        add_embeddings(session, "text", vectors)
    add_embeddings(session, "text", np.eye(2))
    assert count(session, "embeddings") == 2


@pytest.mark.parametrize("labels", [["a"], ["a", "b", "c"], ["a", "b\0"], ["a", "\ud800"], ["a", 3]], ids=repr)
def test_labels_that_do_not_fit_are_refused(session, labels):
    with pytest.raises(TensorError, match="label"):
        add_embeddings(session, "text", np.eye(2), labels=labels)


@pytest.mark.parametrize("kind", ["token", "position", "segment", "weights", ""])
def test_kinds_that_come_with_models_are_not_added(session, kind):
    with pytest.raises(TensorError, match="text, run, tensor"):
        add_embeddings(session, kind, np.eye(2))


@pytest.mark.parametrize("vector", [[], [[1.0]], [np.nan], 1.0, [1e300], ["a"], np.full(HALVES, 1e6)], ids=str)
def test_what_is_no_vector_finds_nothing_but_an_error(session, vector):
    with pytest.raises(TensorError):
        search_embeddings(session, "text", vector)


def test_an_unknown_kind_is_refused(session):
    with pytest.raises(TensorError, match="token, position, segment, text"):
        search_embeddings(session, "words", [1.0])


def test_a_vector_without_a_direction_is_near_nothing(session):
    add_embeddings(session, "text", np.vstack([np.zeros(UNINDEXED), np.ones(UNINDEXED)]))
    first, second = search_embeddings(session, "text", np.ones(UNINDEXED), 5)
    assert (first.row_index, second.row_index) == (1, 0)
    assert np.isnan(second.similarity)


def test_nothing_is_found_where_nothing_is(session):
    create_model(session, "no-embeddings", {}, {})
    assert list(search_embeddings(session, "text", np.ones(VECTORS))) == []
    assert list(search_embeddings(session, "token", np.ones(16))) == []

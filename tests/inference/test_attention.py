"""Attention stored, loaded and asked about."""

from __future__ import annotations

import uuid

import ml_dtypes
import numpy as np
import pytest
from sqlalchemy import event, func, select, text

from arc_halo.errors import CacheError, ConfigurationError, ModelNotFound, NotFound, TensorNotFound
from arc_halo.inference.attention import (
    head_figures,
    heads_looking_at_first_token,
    induction_heads,
    load_attention,
    load_summaries,
    load_tokens,
    previous_token_heads,
    put_attention,
    summarise_attention,
)
from arc_halo.schema import AttentionPattern, InferenceSession, Tensor, TransformerLayer
from arc_halo.store import connections
from tests.inference.patterns import add_served, attention, looking_at
from tests.schema.rows import add, add_layer, add_model

TOKENS = [5, 6, 7, 5, 6]
FIRST, SECOND = "h.0.attn", "h.1.attn"


@pytest.fixture
def served(session):
    return add_served(session)


def put(session, served, number=0, **options):
    matrices = {0: attention(4, 5, seed=number), 1: attention(4, 5, causal=False, seed=number + 100)}
    put_attention(session, served, number, TOKENS, matrices, **options)
    return matrices


def patterns(session):
    return session.scalar(select(func.count()).select_from(AttentionPattern))


@pytest.fixture(params=[True, False], ids=["by copy", "by insert"])
def by_copy(request, monkeypatch):
    monkeypatch.setattr(connections, "may_copy", lambda _: request.param)


@pytest.mark.usefixtures("by_copy")
@pytest.mark.parametrize("top_count", [0, 1, 3, 99])
def test_summaries_come_back(session, served, top_count):
    matrices = put(session, served, top_count=top_count)
    loaded = load_summaries(session, served, 0)
    assert [path.rpartition("h.")[2] for path in loaded] == ["0.attn", "1.attn"]
    for given, found in zip(matrices.values(), loaded.values(), strict=True):
        expected = summarise_attention(given, TOKENS, top_count=top_count)
        for name in expected.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@pytest.mark.usefixtures("by_copy")
def test_one_token_has_no_previous_and_no_repeated_one(session, served):
    put_attention(session, served, 0, [3], {0: np.ones((4, 1, 1), np.float32)}, keep_matrices=True)
    (summary,) = load_summaries(session, served, 0).values()
    assert (summary.previous_token_share, summary.induction_share) == (None, None)
    assert load_tokens(session, served, 0).tolist() == [3]
    (matrices,) = load_attention(session, served, 0).values()
    np.testing.assert_array_equal(matrices, np.ones((4, 1, 1)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
def test_matrices_come_back_bit_for_bit(session, served, dtype):
    matrices = {0: attention(4, 5).astype(dtype), 1: attention(4, 5, causal=False, seed=1).astype(dtype)}
    put_attention(session, served, 0, TOKENS, matrices, keep_matrices=True)
    loaded = load_attention(session, served, 0)
    assert [each.dtype for each in loaded.values()] == [np.dtype(dtype)] * 2
    assert [each.tobytes() for each in loaded.values()] == [each.tobytes() for each in matrices.values()]


def test_only_the_triangle_of_causal_matrices_is_stored(session, served):
    put(session, served, keep_matrices=True)
    shapes = session.execute(
        select(TransformerLayer.layer_index, Tensor.shape)
        .join_from(AttentionPattern, TransformerLayer, AttentionPattern.layer_id == TransformerLayer.id)
        .join(Tensor, Tensor.id == AttentionPattern.tensor_id)
    )
    assert {(index, tuple(shape)) for index, shape in shapes} == {(0, (15,)), (1, (5, 5))}


def test_layers_are_known_by_number_path_and_row(session, served):
    layer = served.model.layers[0]
    paths = {each.path for each in served.model.layers if each.layer_type == "attention"}
    first, second = sorted(paths)
    row = next(each for each in served.model.layers if each.path == second)
    assert put_attention(session, served.id, 0, TOKENS, {first: attention(4, 5), row: attention(4, 5)}) == 8
    assert list(load_summaries(session, served, 0, [1])) == [second]
    for unknown in ("h.7.attn", 7, TransformerLayer(id=uuid.uuid4(), path=layer.path)):
        with pytest.raises(CacheError, match=r"h\.7\.attn|block 7|no layer"):
            put_attention(session, served, 1, TOKENS, {unknown: attention(4, 5)})
    with pytest.raises(CacheError, match="give each once"):
        put_attention(session, served, 1, TOKENS, {0: attention(4, 5), first: attention(4, 5)})


def test_a_session_may_be_new(session, served):
    new = InferenceSession(model=served.model)
    session.add(new)
    put_attention(session, new, 0, TOKENS, {0: attention(4, 5)})
    assert len(head_figures(session, new)) == 4


def test_a_block_that_attends_twice_must_be_told_by_path(session):
    model = add_model(session)
    for position, name in enumerate(("attn", "crossattention")):
        add_layer(session, model, f"h.0.{name}", layer_type="attention", layer_index=0, position=position)
    served = add(session, InferenceSession(model=model))
    with pytest.raises(CacheError, match=r"several layers of attention: h\.0\.attn, h\.0\.crossattention"):
        put_attention(session, served, 0, TOKENS, {0: attention(4, 5)})
    assert put_attention(session, served, 0, TOKENS, {"h.0.attn": attention(3, 5)}) == 3


def test_other_heads_than_the_model_has_are_refused(session, served):
    with pytest.raises(CacheError, match="has 4 heads, its attention 3"):
        put_attention(session, served, 0, TOKENS, {0: attention(3, 5)})
    with pytest.raises(CacheError, match=r"head 2, query 1, sums to nan"):
        put_attention(session, served, 0, TOKENS, {0: attention(4, 5), 1: _with_nan()})
    assert patterns(session) == 0


def _with_nan():
    matrices = attention(4, 5)
    matrices[2, 1, 0] = np.nan
    return matrices


def test_a_request_is_stored_once_and_the_session_goes_on(session, served):
    put(session, served)
    with pytest.raises(CacheError, match="request 0 is stored already"):
        put(session, served)
    put(session, served, 1)
    assert patterns(session) == 16


def test_all_heads_are_one_statement(session, served):
    counts = []
    for layers in ({0: attention(4, 5)}, {0: attention(4, 5), 1: attention(4, 5)}):
        statements = []
        listen = (session.connection(), "before_cursor_execute", lambda *each, log=statements: log.append(each[2]))
        event.listen(*listen)
        put_attention(session, served, len(counts), TOKENS, layers)
        event.remove(*listen)
        counts.append(len(statements))
    assert counts[0] == counts[1] <= 4


def test_matrices_that_were_not_kept_are_not_found(session, served):
    put(session, served)
    with pytest.raises(TensorNotFound, match="keep_matrices=True"):
        load_attention(session, served, 0)
    with pytest.raises(NotFound, match="no attention is stored of request 1"):
        load_summaries(session, served, 1)
    with pytest.raises(NotFound, match="no inference session"):
        load_summaries(session, uuid.uuid4(), 0)


@pytest.fixture
def known_heads(session, served):
    """Of block 0: a sink, a head that looks back by one, an induction head, one that looks at itself."""
    places = ([0] * 6, [0, 0, 1, 2, 3, 4], [0, 1, 2, 1, 2, 3], [0, 1, 2, 3, 4, 5])
    put_attention(session, served, 0, [1, 2, 3, 1, 2, 3], {0: np.stack([looking_at(each) for each in places])})
    return served


def test_heads_are_found_by_what_they_do(session, known_heads):
    asked = {
        heads_looking_at_first_token: [1.0, 2 / 6, 1 / 6, 1 / 6],
        previous_token_heads: [1.0, 0.2, 0.0, 0.0],
    }
    for ask, scores in asked.items():
        found = ask(session, known_heads)
        assert [each.score for each in found] == pytest.approx(scores)
    (best,) = induction_heads(session, known_heads, min_score=0.5)
    assert (best.layer_path[-8:], best.layer_index, best.head_index) == ("h.0.attn", 0, 2)
    assert (best.score, best.request_count) == (1.0, 1)
    assert len(induction_heads(session, known_heads, limit=2)) == 2


def test_scores_are_averaged_over_requests_and_sessions(session, known_heads):
    other = add(session, InferenceSession(model=known_heads.model))
    put_attention(session, other, 0, [1, 2, 3], {0: np.stack([looking_at([0, 1, 2])] * 4)})
    sinks = heads_looking_at_first_token(session, "gpt@1")
    assert (sinks[0].score, sinks[0].request_count) == (pytest.approx((1 + 1 / 3) / 2), 2)
    (induction, *_) = induction_heads(session, known_heads.model)
    assert (induction.score, induction.request_count) == (1.0, 1)  # the other request repeats nothing
    assert heads_looking_at_first_token(session, str(other.id))[0].score == pytest.approx(1 / 3)
    assert len(heads_looking_at_first_token(session, known_heads.id)) == 4


def test_figures_of_each_head(session, known_heads):
    figures = head_figures(session, known_heads)
    assert [each.head_index for each in figures] == [0, 1, 2, 3]
    assert figures[0].distance == pytest.approx(2.5)
    assert head_figures(session, known_heads, sort="induction")[0].head_index == 2
    assert head_figures(session, known_heads, layer=1) == []
    with pytest.raises(ConfigurationError, match="not by 'size'"):
        head_figures(session, known_heads, sort="size")


def test_a_question_is_one_statement_that_reads_no_arrays(session, known_heads):
    statements = []
    event.listen(session.connection(), "before_cursor_execute", lambda *each: statements.append(each[2]))
    induction_heads(session, known_heads)
    assert len(statements) == 1
    assert not any(name in statements[0] for name in ("token_ids", "entropies", "top_"))


def test_a_source_that_is_not_there_is_told(session, served):
    for source in ("nothing", "0000000000", f"{served.id!s:.8}zz"):
        with pytest.raises(ModelNotFound):
            head_figures(session, source)
    assert head_figures(session, str(served.id)[:30]) == []


def stored_nbytes(session):
    return session.scalar(text("SELECT pg_total_relation_size('arc_halo.attention_patterns')"))


@pytest.mark.parametrize("tokens", [128, pytest.param(1024, marks=pytest.mark.long)])
def test_summaries_are_small(database, tokens):
    with database.session() as session:
        served = add_served(session, hidden=24, blocks=12, heads=12)
        before = stored_nbytes(session)
        matrices = {layer: attention(12, tokens, seed=layer, sharpness=3) for layer in range(12)}
        put_attention(session, served, 0, np.random.default_rng(0).integers(0, 50_257, tokens), matrices)
        session.commit()
        nbytes = stored_nbytes(session) - before
    print(f"{nbytes:,} bytes for {tokens} tokens, of 144 heads")  # noqa: T201
    assert nbytes <= 20_000_000 * tokens / 1024 + 200_000 * (tokens < 1024)
    assert sum(each.nbytes for each in matrices.values()) / nbytes > tokens / 40

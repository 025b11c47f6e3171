"""Attention of models of transformers, as they run."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from arc_halo.errors import CacheError, ConfigurationError
from arc_halo.inference.attention import induction_heads, load_attention, load_summaries, summarise_attention
from arc_halo.inference.attention.layers import ModelLayers
from arc_halo.integrations import torch_attention
from arc_halo.integrations.torch import save_state_dict
from arc_halo.integrations.torch_attention import (
    attention_modules,
    attention_visited,
    capture_attention,
    layer_paths,
    record_attention,
)
from arc_halo.schema import InferenceSession
from tests.schema.rows import add

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
SIZES = {
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "llama": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 64,
    },
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries warn of is not ours


def make(kind, *, implementation="sdpa", auto=None):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=100, pad_token_id=0, **SIZES[kind])
    chosen = auto or (AutoModelForCausalLM if kind in {"gpt2", "llama"} else AutoModel)
    return chosen.from_config(config, attn_implementation=implementation)


@pytest.fixture(params=SIZES)
def model(request):
    return make(request.param)


def expected(model):
    """All matrices, as transformers gives them."""
    eager = type(model)._from_config(model.config, attn_implementation="eager")
    eager.load_state_dict(model.state_dict())
    with torch.inference_mode():
        return [each[0].numpy() for each in eager.eval()(torch.tensor([TOKENS]), output_attentions=True).attentions]


def serve(session, model, name="m"):
    stored = save_state_dict(session, name, model.config.to_dict(), model.state_dict())
    return add(session, InferenceSession(model=stored))


def test_each_layer_is_summarised_as_it_runs(model):
    captured = capture_attention(model.train(), TOKENS, top_count=3)
    matrices = expected(model)
    assert len(captured) == len(matrices)
    for found, matrix in zip(captured.values(), matrices, strict=True):
        summary = summarise_attention(matrix, TOKENS, top_count=3)
        np.testing.assert_allclose(found.summary.entropies, summary.entropies, atol=1e-5)
        np.testing.assert_allclose(found.summary.top_weights, summary.top_weights, atol=1e-5)
        assert found.packed is None


def test_the_model_is_left_as_it_was(model):
    model.train()
    quiet = next(iter(model.children()))
    quiet.eval()
    flags = [module.training for module in model.modules()]
    capture_attention(model, torch.tensor([TOKENS]))
    seen = []
    with attention_visited(model, lambda *_: seen.append(model.config._attn_implementation)):
        model(torch.tensor([TOKENS]))
    with pytest.raises(ZeroDivisionError), attention_visited(model, lambda *_: 1 / 0):
        model(torch.tensor([TOKENS]))
    assert set(seen) == {"eager"}
    assert model.config._attn_implementation == "sdpa"
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_hooks for module, _ in attention_modules(model).values())


def test_only_one_layer_is_held_at_a_time(monkeypatch):
    shown, alive = [], []

    def reduce(matrices, tokens, **_):
        del tokens
        shown.append(weakref.ref(matrices))
        alive.append(sum(each() is not None for each in shown))

    monkeypatch.setattr(torch_attention, "reduce_attention", reduce)
    capture_attention(make("gpt2"), TOKENS)
    assert alive == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_is_recorded_under_the_layers_of_the_stored_model(session, model, dtype):
    served = serve(session, model)
    assert [record_attention(session, served, model.to(dtype), TOKENS) for _ in range(2)] == [0, 1]
    paths = [each.path for each in served.model.layers if each.layer_type == "attention"]
    assert list(load_summaries(session, served, 1)) == paths
    assert {each.request_count for each in induction_heads(session, served.model)} == {2}


def test_matrices_are_kept_bit_for_bit(session):
    model = make("gpt2", implementation="eager").bfloat16()
    served = serve(session, model)
    record_attention(session, served, model, TOKENS, request_number=7, keep_matrices=True)
    with torch.inference_mode():
        given = model.eval()(torch.tensor([TOKENS]), output_attentions=True).attentions
    loaded = load_attention(session, served, 7)
    assert [str(each.dtype) for each in loaded.values()] == ["bfloat16"] * 3
    for matrices, tensor in zip(loaded.values(), given, strict=True):
        np.testing.assert_array_equal(matrices.astype(np.float32), tensor[0].float().numpy())


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_body_fits_a_stored_model_with_a_head_and_the_other_way_round(session, kind):
    with_head = make(kind, auto=AutoModelForCausalLM)
    served = serve(session, with_head, "with head"), serve(session, with_head.base_model, "body")
    for stored in served:
        for model in (with_head, with_head.base_model):
            record_attention(session, stored, model, TOKENS)
        assert len(load_summaries(session, stored, 1)) == SIZES[kind].get("n_layer", 2)


def test_where_no_name_fits_the_block_decides(session):
    layers = ModelLayers(session, serve(session, make("gpt2")).model_id)
    assert layer_paths(layers, ["blocks.1.attention"])["blocks.1.attention"].endswith("h.1.attn")
    with pytest.raises(CacheError, match="no attention of the stored model"):
        layer_paths(layers, ["attention"])
    with pytest.raises(CacheError, match="no attention in block 9"):
        layer_paths(layers, ["blocks.9.attention"])


def test_what_is_no_single_request_is_refused():
    with pytest.raises(CacheError, match="give one request"):
        capture_attention(make("gpt2"), torch.tensor([TOKENS, TOKENS]))
    with pytest.raises(CacheError, match="give one request"), attention_visited(model := make("gpt2"), print):
        model(torch.tensor([TOKENS, TOKENS]))


def test_a_module_without_attention_is_refused():
    with pytest.raises(ConfigurationError, match="Linear does not say"):
        capture_attention(torch.nn.Linear(2, 2), TOKENS)

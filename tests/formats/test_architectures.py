from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from arc_halo import dtypes
from arc_halo.formats.architectures import Architecture, TensorShape, describe
from tests.fixtures.models import SmallModel, bert, distilbert, gpt2, llama, mixtral, qwen_moe, unknown

HEADS = {
    "bert": (
        "cls.predictions.transform.dense.weight", "cls.predictions.transform.LayerNorm.gamma", "cls.predictions.bias",
        "cls.predictions.decoder.bias", "cls.seq_relationship.bias", "classifier.weight", "classifier.out_proj.bias",
        "qa_outputs.weight", "lm_head.dense.weight", "lm_head.layer_norm.bias", "lm_head.bias",
        "lm_head.decoder.weight",
        "generator_predictions.LayerNorm.weight", "generator_lm_head.weight", "discriminator_predictions.dense.weight",
    ),
    "distilbert": ("vocab_transform.weight", "vocab_layer_norm.bias", "pre_classifier.weight", "classifier.bias"),
    "gpt2": ("lm_head.weight", "score.weight", "multiple_choice_head.summary.weight", "classifier.weight"),
    "llama": ("score.weight", "qa_outputs.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"),
}  # fmt: skip


def without_prefix(model: SmallModel) -> SmallModel:
    """The names of a base model that was saved without its output projection."""
    shapes = {name.removeprefix("model."): shape for name, shape in model.shapes.items() if name != "lm_head.weight"}
    return replace(model, shapes=shapes)


MODELS = {
    "bert": bert(),
    "bert with prefix": bert("bert."),
    "roberta": bert("roberta.", model_type="roberta"),
    "distilbert": distilbert(),
    "gpt2": gpt2(),
    "gpt2 without prefix": gpt2(""),
    "llama": llama(),
    "llama without prefix": without_prefix(llama()),
    "qwen2": llama(qkv_bias=True, tied=True, model_type="qwen2"),
    "qwen3": llama(qk_norm=True, head_dim=8, model_type="qwen3"),
    "gemma, multi-query": llama(kv_heads=1, head_dim=8, tied=True, model_type="gemma"),
    "phi3": llama(fused=True, model_type="phi3"),
    "mixtral": mixtral(),
    "qwen moe": qwen_moe(),
    "qwen moe, stacked": qwen_moe(stacked=True),
}
FAMILIES = {"qwen moe": "mixture", "mixtral": "mixture", "distilbert": "distilbert", "gpt2": "gpt2"}


def shapes_of(model: SmallModel, dtype: str = "F32") -> dict[str, TensorShape]:
    of = {name: "I64" if name in model.buffers else dtype for name in model.shapes}
    return {name: TensorShape(name, dtypes.by_name(of[name]), shape) for name, shape in model.shapes.items()}


def described(model: SmallModel) -> Architecture:
    return describe(model.config, shapes_of(model))


def cut(arrays: dict[str, np.ndarray], part) -> np.ndarray:
    rows = np.s_[part.start : part.stop]
    return arrays[part.tensor][rows] if part.axis == 0 else arrays[part.tensor][:, rows]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_tensor_is_recognised(model):
    architecture = described(model)
    assert architecture.unrecognised == 0
    assert architecture.notes == ()
    assert [weight.name for weight in architecture.weights] == list(model.shapes)
    assert {layer.layer_type for layer in architecture.layers} >= {"block", "embedding", "attention", "normalization"}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_layers_form_a_tree_with_parents_first(model):
    seen: set[str | None] = {None}
    for layer in described(model).layers:
        assert layer.parent_key in seen
        assert layer.key not in seen
        seen.add(layer.key)
    assert {weight.layer_key for weight in described(model).weights} <= seen


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_heads_cover_each_projection_once(model):
    heads = described(model).heads
    assert len(heads) == 2 * 4
    size = Counter()
    for head in heads:
        for part in {head.query, head.output}:
            size[part.tensor, part.axis] += part.stop - part.start
    for part in {head.key for head in heads} | {head.value for head in heads}:
        size[part.tensor, part.axis] += part.stop - part.start
    assert all(model.shapes[tensor][axis] == length for (tensor, axis), length in size.items())


@pytest.mark.parametrize(("name", "family"), FAMILIES.items())
def test_family(name, family):
    assert described(MODELS[name]).family == family


def test_blocks_are_in_order_and_children_know_their_block():
    layers = described(llama(blocks=12)).layers
    assert [layer.layer_index for layer in layers if layer.layer_type == "block"] == list(range(12))
    attention = [layer for layer in layers if layer.layer_type == "attention"]
    assert [layer.parent_key for layer in attention] == [f"model.layers.{index}" for index in range(12)]
    assert [layer.layer_index for layer in attention] == list(range(12))
    assert [layer.key for layer in layers[-2:]] == ["model.norm", "lm_head"]


def test_widths_and_config_of_layers():
    layers = {layer.key: layer for layer in described(llama(head_dim=8)).layers}
    assert (layers["model.embed_tokens"].input_dim, layers["model.embed_tokens"].output_dim) == (12, 16)
    assert (layers["lm_head"].input_dim, layers["lm_head"].output_dim) == (16, 12)
    assert layers["model.layers.0.self_attn"].config == {"heads": 4, "key_value_heads": 2, "head_dim": 8}
    assert layers["model.layers.1.mlp"].config == {"intermediate_size": 32, "activation": "silu"}
    assert layers["model.norm"].config == {"epsilon": 1e-6}


def test_gpt2_widths_are_those_of_transposed_matrices():
    layers = {layer.key: layer for layer in described(gpt2()).layers}
    mlp = layers["transformer.h.0.mlp"]
    assert (mlp.input_dim, mlp.output_dim, mlp.config["intermediate_size"]) == (16, 16, 64)


def test_heads_of_gpt2_give_the_fused_projection():
    model = gpt2()
    arrays = model.arrays()
    x = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)
    query, key, value = np.split(x @ arrays["transformer.h.1.attn.c_attn.weight"], 3, axis=-1)
    for head in described(model).heads[4:]:
        own = np.s_[:, 4 * head.head_index : 4 * head.head_index + 4]
        for part, whole in ((head.query, query), (head.key, key), (head.value, value)):
            np.testing.assert_allclose(x @ cut(arrays, part), whole[own], atol=1e-6)
        assert (head.output.axis, head.output.start) == (0, 4 * head.head_index)


def test_heads_of_grouped_queries_share_keys_and_values():
    heads = described(llama(heads=4, kv_heads=2)).heads[:4]
    assert [head.kv_group for head in heads] == [0, 0, 1, 1]
    assert [(head.key.start, head.key.stop) for head in heads] == [(0, 4), (0, 4), (4, 8), (4, 8)]
    assert [(head.query.axis, head.query.start) for head in heads] == [(0, 0), (0, 4), (0, 8), (0, 12)]
    assert {(head.output.axis, head.output.tensor) for head in heads} == {(1, "model.layers.0.self_attn.o_proj.weight")}


def test_heads_of_a_fused_grouped_projection_lie_behind_each_other():
    head = described(llama(fused=True)).heads[3]
    assert {part.tensor for part in (head.query, head.key, head.value)} == {"model.layers.0.self_attn.qkv_proj.weight"}
    assert [(part.start, part.stop) for part in (head.query, head.key, head.value)] == [(12, 16), (20, 24), (28, 32)]


def test_experts_and_router():
    layers = {layer.key: layer for layer in described(mixtral()).layers}
    router = layers["model.layers.0.block_sparse_moe.gate"]
    expert = layers["model.layers.0.block_sparse_moe.experts.3"]
    assert (router.output_dim, router.config) == (4, {"role": "router", "experts_per_token": 2})
    assert (expert.parent_key, expert.layer_index) == ("model.layers.0.block_sparse_moe.experts", 0)
    assert expert.config == {"role": "expert", "intermediate_size": 32, "activation": "silu"}


def test_stacked_experts():
    layers = {layer.key: layer for layer in described(qwen_moe(stacked=True)).layers}
    experts = layers["model.layers.1.mlp.experts"]
    assert (experts.input_dim, experts.output_dim) == (16, 16)
    assert experts.config["experts"] == 4


def test_embeddings():
    assert {(e.tensor, e.kind) for e in described(bert("bert.")).embeddings} == {
        ("bert.embeddings.word_embeddings.weight", "token"),
        ("bert.embeddings.position_embeddings.weight", "position"),
        ("bert.embeddings.token_type_embeddings.weight", "segment"),
    }
    assert [e.tensor for e in described(llama()).embeddings] == ["model.embed_tokens.weight"]


def test_categories():
    weights = {weight.name: weight for weight in described(bert()).weights}
    assert weights["embeddings.position_ids"].category == "buffer"
    assert not weights["embeddings.position_ids"].is_trainable
    assert weights["embeddings.word_embeddings.weight"].category == "embedding"
    assert weights["embeddings.LayerNorm.bias"].category == "norm"
    assert weights["encoder.layer.0.attention.self.query.bias"].category == "bias"
    assert weights["pooler.dense.weight"].category == "weight"
    mask = next(weight for weight in described(gpt2()).weights if weight.name == "transformer.h.0.attn.bias")
    assert (mask.category, mask.is_trainable) == ("buffer", False)


def test_quantised_linears_stay_in_their_layer_and_do_not_train():
    name = "model.layers.0.mlp.down_proj"
    model = llama()
    packed = {f"{name}.qweight": (4, 16), f"{name}.scales": (1, 16)}
    shapes = {key: shape for key, shape in model.shapes.items() if not key.startswith(name)} | packed
    weights = {weight.name: weight for weight in described(replace(model, shapes=shapes)).weights}
    assert weights[f"{name}.qweight"].layer_key == "model.layers.0.mlp"
    assert [weights[key].category for key in packed] == ["weight", "buffer"]
    assert not any(weights[key].is_trainable for key in packed)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.down_proj.weight", "nobody.knows.it"])
@pytest.mark.parametrize("suffix", ["_scale", "_scale_inv"])
def test_what_has_scales_does_not_train_and_scales_are_no_parameters(name, suffix):
    model = llama()
    tensors = {each: TensorShape(each, dtypes.DTYPES["F32"], shape) for each, shape in model.shapes.items()}
    tensors |= {
        name: TensorShape(name, dtypes.DTYPES["F8_E4M3"], (4, 4)),
        f"{name}{suffix}": TensorShape(f"{name}{suffix}", dtypes.DTYPES["F32"], (4, 1)),
        "alone.weight": TensorShape("alone.weight", dtypes.DTYPES["F8_E4M3"], (4, 4)),
    }
    weights = {weight.name: weight for weight in describe(model.config, tensors).weights}
    assert (weights[f"{name}{suffix}"].category, weights[f"{name}{suffix}"].is_trainable) == ("buffer", False)
    assert [weights[each].is_trainable for each in (name, "alone.weight")] == [False, True]


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"tie_word_embeddings": True}, "model.embed_tokens.weight"),
        ({"tie_word_embeddings": False}, None),
        ({}, None),
        ({"model_type": "gemma2"}, "model.embed_tokens.weight"),
    ],
)
def test_a_stored_tie_is_told_by_the_config(config, tied):
    model = llama(tied=False)
    del model.config["tie_word_embeddings"]
    weights = {weight.name: weight for weight in describe(model.config | config, shapes_of(model)).weights}
    assert weights["lm_head.weight"].tied_to == tied
    assert weights["model.embed_tokens.weight"].tied_to is None


@pytest.mark.parametrize(("name", "tensors"), HEADS.items())
def test_tensors_that_only_some_models_of_a_family_have(name, tensors):
    model = MODELS[name]
    architecture = described(replace(model, shapes=model.shapes | dict.fromkeys(tensors, (16,))))
    assert architecture.unrecognised == 0


def test_ties_of_a_masked_language_model():
    model = bert("bert.")
    shapes = {"cls.predictions.decoder.weight": (12, 16), "cls.predictions.decoder.bias": (12,)}
    weights = described(replace(model, shapes=model.shapes | shapes | {"cls.predictions.bias": (12,)})).weights
    assert {weight.name: weight.tied_to for weight in weights if weight.tied_to} == {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }


def test_no_tie_between_different_shapes():
    model = llama(tied=False)
    model.shapes["lm_head.weight"] = (11, 16)
    weights = describe(model.config | {"tie_word_embeddings": True}, shapes_of(model)).weights
    assert not any(weight.tied_to for weight in weights)


def test_unknown_models_become_other_and_are_counted():
    architecture = described(unknown())
    assert (architecture.family, architecture.model_type) == ("unknown", "convnet")
    assert architecture.unrecognised == 5
    assert {layer.layer_type for layer in architecture.layers} == {"other"}
    assert [layer.key for layer in architecture.layers] == ["stages.0", "stages.1", "stages.2", "head", "scale"]


def test_unknown_parts_hang_below_the_layer_they_are_named_for():
    model = llama()
    model.shapes["model.layers.0.self_attn.sinks"] = (4,)
    model.shapes["model.layers.0.self_attn.rotor.proj.weight"] = (4, 4)
    model.shapes["vision.patch.weight"] = (4, 4)
    architecture = described(model)
    others = {layer.key: layer.parent_key for layer in architecture.layers if layer.layer_type == "other"}
    attention = "model.layers.0.self_attn"
    assert others == {f"{attention}.sinks": attention, f"{attention}.rotor": attention, "vision": None}
    assert (architecture.unrecognised, len(architecture.heads)) == (3, 8)


@pytest.mark.parametrize("number", ["#", "007", "-1", "\u0663", "1" * 20, ""])
def test_what_is_no_number_of_a_block(number):
    model = llama()
    model.shapes[f"model.layers.{number}.mlp.up_proj.weight"] = (32, 16)
    architecture = described(model)
    assert (architecture.unrecognised, architecture.notes) == (1, ())


def test_the_language_model_inside_several_modalities():
    model = llama()
    shapes = {name.replace("model.", "model.language_model.", 1): shape for name, shape in model.shapes.items()}
    shapes |= {f"model.vision_tower.layers.{i}.fc.weight": (4, 4) for i in range(100)}
    config = {"model_type": "gemma3", "text_config": model.config}
    architecture = describe(config, shapes_of(replace(model, shapes=shapes)))
    assert (architecture.model_type, architecture.family) == ("gemma3", "llama")
    assert (len(architecture.heads), architecture.unrecognised) == (8, 100)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "config has no num_attention_heads"),
        ({"num_attention_heads": 5, "num_key_value_heads": 2}, "num_attention_heads 5 is no multiple"),
        ({"num_attention_heads": 3}, "do not fit"),
        ({"num_attention_heads": 4, "num_key_value_heads": 4}, "do not fit"),
        ({"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}, "head_dim 6 contradicts"),
        ({"num_attention_heads": 2**40}, "no integer from 1 to 4096"),
        ({"num_attention_heads": True}, "no integer"),
        ({"num_attention_heads": [4, 4]}, "no integer"),
        ({"num_attention_heads": -4}, "no integer"),
    ],
)
def test_a_config_that_contradicts_the_shapes_gives_no_heads(config, reason):
    architecture = describe(config, shapes_of(llama()))
    assert architecture.heads == ()
    assert architecture.unrecognised == 0
    assert architecture.notes[0].startswith("2 of 2 attention layers have no heads")
    assert reason in architecture.notes[0]


def test_an_attention_layer_without_values_has_no_heads():
    model = llama()
    del model.shapes["model.layers.1.self_attn.v_proj.weight"]
    architecture = described(model)
    assert {head.layer_key for head in architecture.heads} == {"model.layers.0.self_attn"}
    assert len(architecture.notes) == 1
    assert architecture.notes[0].startswith("1 of 2 attention layers have no heads: model.layers.1.self_attn does not")


def test_a_missing_block_is_noted():
    assert describe(llama(blocks=3).config, shapes_of(llama())).notes == (
        "config has num_hidden_layers 3, the tensors make 2 blocks",
    )


def manifest_of_70b_mixture() -> SmallModel:
    config = mixtral().config | {
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 4096,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (128_256, 4096), "model.norm.weight": (4096,)}
    for block in range(80):
        at = f"model.layers.{block}"
        for part, shape in {"q_proj": (4096, 4096), "k_proj": (512, 4096), "v_proj": (512, 4096)}.items():
            shapes[f"{at}.self_attn.{part}.weight"] = shape
        shapes[f"{at}.self_attn.o_proj.weight"] = (4096, 4096)
        shapes[f"{at}.input_layernorm.weight"] = (4096,)
        shapes[f"{at}.post_attention_layernorm.weight"] = (4096,)
        shapes[f"{at}.mlp.gate.weight"] = (128, 4096)
        for expert in range(128):
            for part, shape in {"gate": (544, 4096), "up": (544, 4096), "down": (4096, 544)}.items():
                shapes[f"{at}.mlp.experts.{expert}.{part}_proj.weight"] = shape
    return SmallModel(config, shapes)


def test_manifest_of_a_70b_mixture_of_experts():
    model = manifest_of_70b_mixture()
    assert sum(map(math.prod, model.shapes.values())) > 70e9
    tensors = shapes_of(model, "BF16")
    start = time.process_time()
    architecture = describe(model.config, tensors)
    seconds = time.process_time() - start
    assert (len(tensors), len(architecture.heads), architecture.unrecognised) == (31_282, 80 * 64, 0)
    assert sum(layer.config.get("role") == "expert" for layer in architecture.layers) == 80 * 128
    assert seconds < 2  # of this thread's own work, not of the clock; measured 0.47


def test_names_of_hundreds_of_parts_cost_no_more_than_their_length():
    names = [".".join([*["a"] * 505, str(number)]) for number in range(2000)]
    tensors = {name: TensorShape(name, dtypes.DTYPES["F32"], (1,)) for name in names}
    start = time.process_time()
    architecture = describe({}, tensors)
    seconds = time.process_time() - start
    assert architecture.unrecognised == 2000
    assert seconds < 1  # measured 0.16; 2.8 where each was looked for below every part of its name

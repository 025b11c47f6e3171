"""Llama and its kin (Mistral, Qwen, Gemma, Phi-3): grouped queries, gated feed-forward, norms before each part.

Names as in Hugging Face transformers, ``models/llama/modeling_llama.py``, ``qwen3``, ``gemma2`` and ``phi3``.
"""

from __future__ import annotations

from arc_halo.formats.architectures.abc import Family, Module, Projections, norm

ATTENTION = Module(
    "self_attn",
    "attention",
    owns=("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"),
    buffers=("rotary_emb.inv_freq",),
    children=(norm("q_norm"), norm("k_norm")),
    projections=(
        Projections("q_proj", "k_proj", "v_proj", "o_proj"),
        Projections("qkv_proj", "qkv_proj", "qkv_proj", "o_proj"),
    ),
)
FEEDFORWARD = Module("mlp", "feedforward", owns=("gate_proj", "up_proj", "gate_up_proj", "down_proj"))


def family(name: str, feedforward: tuple[Module, ...]) -> Family:
    """Declare decoders with Llama's names around these feed-forward modules."""
    block = Module(
        "layers.#",
        "block",
        owns=(),
        children=(
            norm("input_layernorm"),
            ATTENTION,
            norm("post_attention_layernorm"),
            norm("pre_feedforward_layernorm"),
            *feedforward,
            norm("post_feedforward_layernorm"),
        ),
    )
    return Family(
        name=name,
        anchors=("embed_tokens.weight", "layers.0.self_attn.o_proj.weight"),
        body=(Module("embed_tokens", "embedding", embedding="token"), block, norm("norm")),
        outer=(Module("lm_head", "output"), Module("score", "output"), Module("qa_outputs", "output")),
        ties=(("lm_head.weight", "~embed_tokens.weight"),),
        tied_model_types=frozenset(
            {"gemma", "gemma2", "gemma3", "gemma3_text", "cohere", "cohere2", "smollm3", "starcoder2"}
        ),
    )


LLAMA = family("llama", (FEEDFORWARD,))

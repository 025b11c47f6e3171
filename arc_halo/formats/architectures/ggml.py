"""Models in GGUF files: one naming scheme for BERT, GPT-2, Llama, mixtures of experts and all their kin.

Names as in the ``gguf`` package of https://github.com/ggml-org/llama.cpp, ``constants.py``. Converters turn GPT-2's
matrices round, so all are [output, input].
"""

from __future__ import annotations

from arc_halo.formats.architectures.abc import Family, Module, Projections, norm

_ATTENTION = Module(
    "attn",
    "attention",
    path="",
    owns=("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_gate", "attn_sinks", "attn_output"),
    buffers=("attn_rot_embd.weight",),
    children=(norm("attn_q_norm"), norm("attn_k_norm"), norm("attn_sub_norm")),
    projections=(
        Projections("attn_q", "attn_k", "attn_v", "attn_output"),
        Projections("attn_qkv", "attn_qkv", "attn_qkv", "attn_output"),
    ),
)


def _feedforward(name: str, *owns: str, role: str | None = None, children: tuple[Module, ...] = ()) -> Module:
    return Module(name, "feedforward", path="", owns=owns, role=role, children=children)


_FEEDFORWARD = _feedforward(
    "ffn",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    children=(
        _feedforward("router", "ffn_gate_inp", "exp_probs_b", role="router"),
        _feedforward("experts", "ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps", "ffn_down_exps", role="experts"),
        _feedforward("shared_expert", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp", role="shared_expert"),
        _feedforward("shared_expert_gate", "ffn_gate_inp_shexp", role="shared_expert_gate"),
        norm("ffn_sub_norm"),
    ),
)

_BLOCK = Module(
    "blk.#",
    "block",
    owns=(),
    children=(
        norm("attn_norm"),
        norm("attn_norm_2"),
        _ATTENTION,
        norm("attn_output_norm"),
        norm("post_attention_norm"),
        norm("ffn_norm"),
        _FEEDFORWARD,
        norm("post_ffw_norm"),
        norm("layer_output_norm"),
    ),
)

GGML = Family(
    name="ggml",
    anchors=("token_embd.weight", "blk.0.attn_output.weight", "blk.0.attn_norm.weight"),
    body=(
        Module("token_embd", "embedding", embedding="token"),
        Module("position_embd", "embedding", embedding="position"),
        Module("token_types", "embedding", embedding="segment"),
        norm("token_embd_norm"),
        Module(
            "rope",
            "other",
            path="",
            owns=(),
            buffers=("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"),
        ),
        _BLOCK,
        norm("output_norm"),
        Module("output", "output"),
        Module("cls", "output", owns=("", "output"), children=(norm("norm"),)),
    ),
    outer=(),
    ties=(("output.weight", "~token_embd.weight"),),
    tied_model_types=frozenset(),  # a tied output is left out of the file
)

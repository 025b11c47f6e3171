"""GPT-2: Q, K and V fused in one Conv1D, whose matrix is [input, output].

Names as in Hugging Face transformers, ``models/gpt2/modeling_gpt2.py``.
"""

from __future__ import annotations

from arc_halo.formats.architectures.abc import Family, Module, Projections, norm

_BLOCK = Module(
    "h.#",
    "block",
    owns=(),
    children=(
        norm("ln_1"),
        Module(
            "attn",
            "attention",
            owns=("c_attn", "c_proj"),
            transposed=True,
            buffers=("bias", "masked_bias"),  # causal masks that old files carry
            projections=(Projections("c_attn", "c_attn", "c_attn", "c_proj"),),
        ),
        norm("ln_cross_attn"),
        Module(
            "crossattention",
            "attention",
            owns=("q_attn", "c_attn", "c_proj"),
            transposed=True,
            buffers=("bias", "masked_bias"),
            projections=(Projections("q_attn", "c_attn", "c_attn", "c_proj"),),
        ),
        norm("ln_2"),
        Module("mlp", "feedforward", owns=("c_fc", "c_proj"), transposed=True),
    ),
)

GPT2 = Family(
    name="gpt2",
    anchors=("wte.weight", "h.0.attn.c_attn.weight"),
    body=(
        Module("wte", "embedding", embedding="token"),
        Module("wpe", "embedding", embedding="position"),
        _BLOCK,
        norm("ln_f"),
    ),
    outer=(
        Module("lm_head", "output"),
        Module("multiple_choice_head", "output", owns=("summary",)),
        Module("score", "output"),
        Module("classifier", "output"),
        Module("qa_outputs", "output"),
    ),
    ties=(("lm_head.weight", "~wte.weight"),),
    heads="n_head",
    blocks="n_layer",
)

"""Mixtures of experts on Llama's decoder (Mixtral, Qwen-MoE, DeepSeek-like): a router and many feed-forward experts.

Names as in Hugging Face transformers: ``models/mixtral`` and ``models/qwen2_moe`` as their checkpoints are
published (one tensor per expert), and as transformers 5 holds them (all experts of a layer stacked in one tensor).
"""

from __future__ import annotations

from dataclasses import replace

from arc_halo.formats.architectures import llama
from arc_halo.formats.architectures.abc import Module

_ROUTER = Module("gate", "feedforward", role="router")


def _experts(*linears: str) -> Module:
    expert = Module("#", "feedforward", owns=linears, role="expert")
    return Module("experts", "feedforward", owns=("gate_up_proj", "down_proj"), children=(expert,), role="experts")


_QWEN = replace(
    llama.FEEDFORWARD,
    children=(
        _ROUTER,
        _experts("gate_proj", "up_proj", "down_proj"),
        replace(llama.FEEDFORWARD, name="shared_expert", role="shared_expert"),
        replace(llama.FEEDFORWARD, name="shared_experts", role="shared_expert"),
        Module("shared_expert_gate", "feedforward", role="shared_expert_gate"),
    ),
)
_MIXTRAL = Module("block_sparse_moe", "feedforward", owns=(), children=(_ROUTER, _experts("w1", "w3", "w2")))

MIXTURE = llama.family("mixture", (_QWEN, _MIXTRAL))

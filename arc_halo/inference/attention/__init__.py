"""Attention patterns: where each head of each layer looked in a request.

Matrix
    ``[queries, keys]`` of one head; each row shares out one whole. A causal one looks at no later key.
Summary
    What is always stored of a matrix: its entropies, distances and shares, and the strongest keys of each query.
Sink
    A token that takes much attention and says little, mostly the first one (Xiao et al., 2023).
Induction
    Looking behind an earlier place of the same token, to say what followed there (Olsson et al., 2022).
"""

from arc_halo.inference.attention.layouts import bertviz_layout, circuitsvis_layout
from arc_halo.inference.attention.loading import load_attention, load_summaries, load_tokens
from arc_halo.inference.attention.packing import pack_matrix, unpack_matrix
from arc_halo.inference.attention.plots import HeadGrid, HeadPlot, plot_head, plot_heads
from arc_halo.inference.attention.querying import (
    HeadFigures,
    HeadScore,
    head_figures,
    heads_looking_at_first_token,
    induction_heads,
    previous_token_heads,
)
from arc_halo.inference.attention.storing import LayerAttention, put_attention, put_summaries, reduce_attention
from arc_halo.inference.attention.summary import AttentionSummary, summarise_attention

__all__ = [
    "AttentionSummary",
    "HeadFigures",
    "HeadGrid",
    "HeadPlot",
    "HeadScore",
    "LayerAttention",
    "bertviz_layout",
    "circuitsvis_layout",
    "head_figures",
    "heads_looking_at_first_token",
    "induction_heads",
    "load_attention",
    "load_summaries",
    "load_tokens",
    "pack_matrix",
    "plot_head",
    "plot_heads",
    "previous_token_heads",
    "put_attention",
    "put_summaries",
    "reduce_attention",
    "summarise_attention",
    "unpack_matrix",
]

"""DistilBERT: BERT's encoder under other names.

Names as in Hugging Face transformers, ``models/distilbert/modeling_distilbert.py``.
"""

from __future__ import annotations

from arc_halo.formats.architectures.abc import Family, Module, Projections, norm

_BLOCK = Module(
    "transformer.layer.#",
    "block",
    owns=(),
    children=(
        Module(
            "attention",
            "attention",
            owns=("q_lin", "k_lin", "v_lin", "out_lin"),
            projections=(Projections("q_lin", "k_lin", "v_lin", "out_lin"),),
        ),
        norm("sa_layer_norm"),
        Module("ffn", "feedforward", owns=("lin1", "lin2")),
        norm("output_layer_norm"),
    ),
)

DISTILBERT = Family(
    name="distilbert",
    anchors=("transformer.layer.0.attention.q_lin.weight",),
    body=(
        Module(
            "embeddings",
            "embedding",
            owns=(),
            buffers=("position_ids",),
            children=(
                Module("word_embeddings", "embedding", embedding="token"),
                Module("position_embeddings", "embedding", embedding="position"),
                norm("LayerNorm"),
            ),
        ),
        _BLOCK,
    ),
    outer=(
        Module("vocab_transform", "output"),
        norm("vocab_layer_norm"),
        Module("vocab_projector", "output"),
        Module("pre_classifier", "output"),
        Module("classifier", "output"),
        Module("qa_outputs", "output"),
    ),
    ties=(("vocab_projector.weight", "~embeddings.word_embeddings.weight"),),
    heads="n_heads",
    blocks="n_layers",
)

"""BERT and its kin (RoBERTa, XLM-R, ELECTRA, sentence encoders): separate Q, K, V; norms after each part.

Names as in Hugging Face transformers, ``models/bert/modeling_bert.py`` and ``models/roberta/modeling_roberta.py``.
"""

from __future__ import annotations

from arc_halo.formats.architectures.abc import Family, Module, Projections, norm

_PROJECTIONS = Projections("self.query", "self.key", "self.value", "output.dense")


def _attention(name: str) -> Module:
    return Module(
        name,
        "attention",
        owns=("self.query", "self.key", "self.value", "output.dense"),
        children=(norm("output.LayerNorm"),),
        projections=(_PROJECTIONS,),
    )


_EMBEDDINGS = Module(
    "embeddings",
    "embedding",
    owns=(),
    buffers=("position_ids", "token_type_ids"),
    children=(
        Module("word_embeddings", "embedding", embedding="token"),
        Module("position_embeddings", "embedding", embedding="position"),
        Module("token_type_embeddings", "embedding", embedding="segment"),
        norm("LayerNorm"),
    ),
)

_BLOCK = Module(
    "encoder.layer.#",
    "block",
    owns=(),
    children=(
        _attention("attention"),
        _attention("crossattention"),
        Module("feedforward", "feedforward", path="", owns=("intermediate.dense", "output.dense")),
        norm("output.LayerNorm"),
    ),
)

BERT = Family(
    name="bert",
    anchors=("embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight"),
    body=(
        _EMBEDDINGS,
        Module("embeddings_project", "embedding"),
        _BLOCK,
        Module("pooler", "output", owns=("dense",)),
    ),
    outer=(
        Module(
            "cls.predictions",
            "output",
            owns=("transform.dense", "decoder", "bias"),
            children=(norm("transform.LayerNorm"),),
        ),
        Module("cls.seq_relationship", "output"),
        Module("lm_head", "output", owns=("dense", "decoder", "bias"), children=(norm("layer_norm"),)),
        Module("generator_predictions", "output", owns=("dense",), children=(norm("LayerNorm"),)),
        Module("generator_lm_head", "output"),
        Module("discriminator_predictions", "output", owns=("dense", "dense_prediction")),
        Module("classifier", "output", owns=("", "dense", "out_proj")),
        Module("qa_outputs", "output"),
    ),
    ties=(
        ("cls.predictions.decoder.weight", "~embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ("lm_head.decoder.weight", "~embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
        ("generator_lm_head.weight", "~embeddings.word_embeddings.weight"),
    ),
)

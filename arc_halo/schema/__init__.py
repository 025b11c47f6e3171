"""The database as declared in Python."""

from arc_halo.schema.base import Base
from arc_halo.schema.core import AttentionHead, Model, ModelAlias, ModelFile, ModelLineage, TransformerLayer
from arc_halo.schema.tensors import Chunk, Embedding, ModelWeight, Tensor, TensorChunk

__all__ = [
    "AttentionHead",
    "Base",
    "Chunk",
    "Embedding",
    "Model",
    "ModelAlias",
    "ModelFile",
    "ModelLineage",
    "ModelWeight",
    "Tensor",
    "TensorChunk",
    "TransformerLayer",
]

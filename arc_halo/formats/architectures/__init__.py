"""Architectures: what the tensors of a model are, told from their names, shapes and config.json.

Glossary: a *family* is a naming scheme that many model types share; its *modules* form the tree that the *layers* of
one model are made from. A *block* is the repeated unit of attention and feed-forward. *Heads* are cut out of the
query, key, value and output projections; heads of one *key/value group* share keys and values. An *expert* is one of
many feed-forward layers between which a *router* chooses. *Other* is what nobody declared.
"""

from __future__ import annotations

from arc_halo.formats.architectures.description import (
    Architecture,
    EmbeddingSpec,
    HeadSlice,
    HeadSpec,
    LayerSpec,
    Shaped,
    TensorShape,
    WeightSpec,
)
from arc_halo.formats.architectures.recognition import describe

__all__ = [
    "Architecture",
    "EmbeddingSpec",
    "HeadSlice",
    "HeadSpec",
    "LayerSpec",
    "Shaped",
    "TensorShape",
    "WeightSpec",
    "describe",
]

"""What a model is made of, as frozen records that know neither files nor tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arc_halo.dtypes import DType

LayerType = Literal["block", "embedding", "attention", "feedforward", "normalization", "output", "other"]
WeightCategory = Literal["weight", "bias", "embedding", "norm", "buffer", "other"]
EmbeddingKind = Literal["token", "position", "segment"]


class Shaped(Protocol):
    """What is asked of a tensor here: entries of a file's header have it, too."""

    @property
    def name(self) -> str:
        """Name in the file."""

    @property
    def dtype(self) -> DType:
        """Element type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A tensor without its bytes."""

    name: str
    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A node of the layer tree.

    ``key`` is unique in the model and begins with the parent's key. ``layer_index`` is the number of the block that
    the layer is or stands in, None outside of blocks.
    """

    key: str
    parent_key: str | None
    name: str
    layer_index: int | None
    layer_type: LayerType
    input_dim: int | None
    output_dim: int | None
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """A stored tensor's place: its layer, what it is there, and the stored tensor it is tied to."""

    name: str
    layer_key: str
    category: WeightCategory
    tied_to: str | None
    is_trainable: bool


@dataclass(frozen=True, slots=True)
class HeadSlice:
    """The part of a projection that belongs to one head: ``start:stop`` along ``axis`` (0: rows, 1: columns)."""

    tensor: str
    axis: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """One attention head; heads of one ``kv_group`` share keys and values."""

    layer_key: str
    head_index: int
    head_dim: int
    kv_group: int
    query: HeadSlice
    key: HeadSlice
    value: HeadSlice
    output: HeadSlice


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """A tensor whose rows are vectors: one per token, position or segment."""

    tensor: str
    kind: EmbeddingKind


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's layers, weights and heads.

    Attributes
    ----------
    model_type
        As config.json names it; empty without a config.
    family
        The naming scheme that was recognised, or ``unknown``.
    layers
        The tree, parents before children, blocks in their order.
    unrecognised
        Tensors that lie in layers of type ``other``.
    notes
        What does not fit together, one sentence each, for people.
    """

    model_type: str
    family: str
    layers: tuple[LayerSpec, ...]
    weights: tuple[WeightSpec, ...]
    heads: tuple[HeadSpec, ...]
    embeddings: tuple[EmbeddingSpec, ...]
    unrecognised: int
    notes: tuple[str, ...]

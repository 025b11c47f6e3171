"""What keys and values look like: layers, heads, widths and element type."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from arc_halo.dtypes import DType, by_name, of_array
from arc_halo.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arc_halo.inference.kv.types import Layers

_AXES: Final = "kv_heads,tokens,key_dim/value_dim: "
_RUN: Final = re.compile(r"([0-9]+)x\[([0-9]+),([0-9]+)/([0-9]+)\]")


class LayerShape(NamedTuple):
    """Of one layer: heads of keys and values, and the width of each; those of values may have another."""

    kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class KVLayout:
    """All layers of a model, in order, and their element type (as safetensors spells it)."""

    layers: tuple[LayerShape, ...]
    dtype: str

    def __post_init__(self) -> None:
        if not self.layers or any(size < 1 for layer in self.layers for size in layer):
            raise CacheError(f"keys and values have at least one layer, head and element, not {self.layers}")
        if self.element.numpy is None:
            raise CacheError(f"keys and values of {self.dtype} cannot be stored: numpy has no such elements")

    @classmethod
    def of(cls, layers: Layers) -> KVLayout:
        """The layout of arrays of shape [kv_heads, tokens, dim]."""
        shapes = tuple(LayerShape(keys.shape[0], keys.shape[-1], values.shape[-1]) for keys, values in layers)
        return cls(shapes, of_array(layers[0][0]).name if layers else "F32")

    @classmethod
    def parse(cls, text: str, dtype: str) -> KVLayout:
        """The layout that a namespace names.

        Raises
        ------
        CacheError
            It names none of keys and values.
        """
        runs = [_RUN.fullmatch(word) for word in text.removeprefix(_AXES).split()]
        if not text.startswith(_AXES) or not all(runs):
            raise CacheError(f"{text!r} is no layout of keys and values")
        shapes = [(int(run[1]), LayerShape(*(int(size) for size in run.groups()[1:]))) for run in runs if run]
        return cls(tuple(shape for count, shape in shapes for _ in range(count)), dtype)

    @property
    def element(self) -> DType:
        """The element type."""
        return by_name(self.dtype)

    @property
    def numpy(self) -> np.dtype:
        """The element type as numpy has it."""
        found = self.element.numpy
        assert found is not None
        return np.dtype(found)

    @property
    def token_nbytes(self) -> int:
        """Bytes of keys and values of one token."""
        elements = sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in self.layers)
        return elements * self.numpy.itemsize

    def __str__(self) -> str:
        """As a namespace has it: axes, then runs of equal layers."""
        runs = ((len(list(run)), shape) for shape, run in groupby(self.layers))
        return _AXES + " ".join(
            f"{count}x[{shape.kv_heads},{shape.key_dim}/{shape.value_dim}]" for count, shape in runs
        )

    def check(self, layers: Layers, token_count: int) -> None:
        """Raise `CacheError` unless these are keys and values of that many tokens in this layout."""
        if len(layers) != len(self.layers):
            raise CacheError(f"{len(layers)} layers of keys and values were given where {len(self.layers)} belong")
        for number, (shape, pair) in enumerate(zip(self.layers, layers, strict=True)):
            for name, array, dim in zip(("keys", "values"), pair, (shape.key_dim, shape.value_dim), strict=True):
                wanted = (shape.kv_heads, token_count, dim)
                if array.shape != wanted or array.dtype != self.numpy:
                    raise CacheError(
                        f"{name} of layer {number} are {array.dtype} of shape {list(array.shape)} where "
                        f"{self.numpy} of shape {list(wanted)} belong"
                    )

    def empty(self, token_count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Arrays of this layout for that many tokens, to be filled."""
        return [
            (
                np.empty((shape.kv_heads, token_count, shape.key_dim), self.numpy),
                np.empty((shape.kv_heads, token_count, shape.value_dim), self.numpy),
            )
            for shape in self.layers
        ]


def cut(layers: Layers, start: int, stop: int) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """The keys and values of some of the tokens, as views."""
    return [(keys[:, start:stop], values[:, start:stop]) for keys, values in layers]

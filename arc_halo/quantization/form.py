"""The contract of a stored form: which tensors of a model stand for one of floats, and how they are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.dtypes import DTYPES
from arc_halo.quantization.abc import Quantized
from arc_halo.quantization.ggml import dequantize_blocks

if TYPE_CHECKING:
    from arc_halo.dtypes import DType
    from arc_halo.quantization.abc import Scheme
    from arc_halo.quantization.description import QuantizedTensor


class StoredForm(ABC):
    """How a tensor of floats is stored.

    What says so may be the model's config, or the type of the stored tensor: whoever reads floats asks no further.

    Attributes
    ----------
    scheme
        The id of the way in which it was quantised.
    dtype, shape
        Of the floats.
    parts
        Names of the stored tensors, all with as many rows as the floats have; the first has the name of the floats.
    """

    scheme: str
    dtype: DType
    shape: tuple[int, ...]
    parts: tuple[str, ...]

    @abstractmethod
    def floats(self, *parts: np.ndarray) -> np.ndarray:
        """A matrix of float32 from the same rows of each part, each of them a matrix."""

    @property
    def columns(self) -> int:
        """Floats of a row; a scalar is a row of one."""
        return self.shape[-1] if self.shape else 1


class CodesWithScales(StoredForm):
    """Codes of a scheme of ours, with scales beside them, as a description says."""

    def __init__(self, scheme: Scheme, described: QuantizedTensor) -> None:
        self.scheme = scheme.id
        self.dtype = described.dtype
        self.shape = described.shape
        self.parts = (described.name, described.scale_name)
        self._scheme = scheme

    def floats(self, *parts: np.ndarray) -> np.ndarray:
        """Dequantise rows of codes by their scales."""
        codes, scale = parts
        return self._scheme.dequantize(Quantized(codes, scale), (len(codes), self.columns))


class GgmlBlocks(StoredForm):
    """Blocks of one of ggml's types, which hold their scales: the tensor's own type says all."""

    def __init__(self, name: str, blocks: DType, shape: tuple[int, ...]) -> None:
        self.scheme = blocks.name
        self.dtype = DTYPES["F32"]
        self.shape = shape
        self.parts = (name,)
        self._blocks = blocks

    def floats(self, *parts: np.ndarray) -> np.ndarray:
        """Dequantise rows of blocks."""
        (rows,) = parts
        return dequantize_blocks(np.ascontiguousarray(rows), self._blocks).reshape(len(rows), self.columns)

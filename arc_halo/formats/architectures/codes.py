"""Codes of quantised tensors, told from the scales that stand beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

    from arc_halo.dtypes import DType

# Where compressed-tensors and our own schemes, FP8 checkpoints, bitsandbytes, GPTQ and AWQ keep what codes are times.
_SCALES = ("{name}_scale", "{name}_scale_inv", "{name}.absmax", "{stem}.SCB", "{stem}.scales")
_MAX_FLOAT_BITS = 8


def scale_of(name: str, dtype: DType, names: Container[str]) -> str | None:
    """The tensor that has the scales of a tensor of codes; None for one that stands for no other numbers than it is."""
    if dtype.is_float and dtype.bits > _MAX_FLOAT_BITS:
        return None
    stem = name.rpartition(".")[0]
    return next((scale for each in _SCALES if (scale := each.format(name=name, stem=stem)) in names), None)

"""Fewer bits and fewer numbers: schemes that quantise an array, masks that prune one, and what either costs.

Scheme
    Turns floats into codes of 4 or 8 bits and back. Its id is stored beside the codes, for ever.
Codes
    The small numbers that stand for the floats.
Scale
    What the codes of a row, or of a block of one, are multiplied by; stored beside them in float32.
Description
    What a model's config says of its quantised tensors: their scheme, and the type and shape that each had.
Form
    Which stored tensors stand for one of floats, and how: told by a description, or by the type that one is stored as.
Sparsity
    The share of a tensor's numbers that are zero.
Pruning
    Setting the numbers that matter least to zero: by their magnitude, alone or in rows and heads.
Deviation
    How far numbers are from those that they stand for.
"""

from __future__ import annotations

from types import MappingProxyType

from arc_halo.errors import ConfigurationError
from arc_halo.quantization.abc import Quantized, Scheme
from arc_halo.quantization.description import Description, QuantizedTensor
from arc_halo.quantization.error import Deviation
from arc_halo.quantization.form import StoredForm
from arc_halo.quantization.fp8 import Fp8
from arc_halo.quantization.int8 import Int8
from arc_halo.quantization.nf4 import NormalFloat4

__all__ = ["SCHEMES", "Description", "Deviation", "Quantized", "QuantizedTensor", "Scheme", "StoredForm", "scheme"]

SCHEMES = MappingProxyType[str, Scheme]({each.id: each for each in (Int8(), NormalFloat4(), Fp8())})


def scheme(scheme_id: str) -> Scheme:
    """The scheme of an id.

    Raises
    ------
    ConfigurationError
        This version has no such scheme.
    """
    try:
        return SCHEMES[scheme_id]
    except KeyError:
        raise ConfigurationError(f"scheme {scheme_id!r} is not known; there are {', '.join(SCHEMES)}") from None

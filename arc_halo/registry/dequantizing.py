"""Quantised models and tensors as the floats that they stand for."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from arc_halo import quantization
from arc_halo.dtypes import by_name
from arc_halo.errors import ConfigurationError, ModelFolderError, QuantizationError, TensorError
from arc_halo.quantization import Description, Quantized, QuantizedTensor
from arc_halo.quantization.abc import SCALE_DTYPE, SUITABLE
from arc_halo.quantization.description import FIELD
from arc_halo.registry.deriving import Derivation, derive_model, read_config, refuse_names, tie_roots
from arc_halo.registry.matrices import wanted_of
from arc_halo.registry.naming import find_model
from arc_halo.registry.reading import read_tensor, weights_of
from arc_halo.registry.streaming import Spool, read_blocks
from arc_halo.store import Meter

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.dtypes import DType
    from arc_halo.quantization import Scheme
    from arc_halo.registry.streaming import SpooledTensor
    from arc_halo.schema import Model, ModelWeight
    from arc_halo.store import Progress

FloatName = Literal["F16", "BF16", "F32", "F64"]


def dequantize_model(
    session: Session,
    model: Model | uuid.UUID | str,
    dtype: FloatName | None = None,
    *,
    name: str | None = None,
    version: str | None = None,
    compression: PolicyName = "balanced",
    progress: Progress | None = None,
) -> Model:
    """Make a version of a quantised model whose matrices are floats again.

    Parameters
    ----------
    dtype
        Of the matrices; by default that which each had before. As ``F32`` they are to the bit the numbers that the
        errors were measured with, and quantised once more by the same scheme they stay that.
    name, version, compression
        Of the new version, as in `quantize_model`.

    Raises
    ------
    QuantizationError
        The model is not quantised, or by another tool.
    ModelFolderError
        Its config does not fit its tensors.
    TensorError
        A number is too large for the type.
    """
    origin = find_model(session, model)
    target = origin.name if name is None else name
    refuse_names(session, target, version)
    config = read_config(session, origin)
    weights = weights_of(session, origin)
    scheme, tensors = _describe(origin, config, weights)
    wanted = None if dtype is None else _float(dtype)
    roots = tie_roots(weights)
    by_its_name = {weight.name: weight for weight in weights}
    with Spool() as spool, session.begin_nested():
        made: dict[str, SpooledTensor] = {}
        untied = [each for each in tensors if roots[each.name].name == each.name]
        meter = Meter(progress, "dequantize", sum(by_its_name[each.name].tensor.nbytes for each in untied))
        for each in untied:
            codes, scale = by_its_name[each.name], by_its_name[each.scale_name]
            restored = spool.tensor(each.name, wanted or each.dtype, each.shape)
            columns = each.shape[-1] if each.shape else 1
            for block in read_blocks(session, wanted_of(codes), wanted_of(scale)):
                numbers = scheme.dequantize(Quantized(*block), (len(block[0]), columns))
                restored.append(_as(restored.dtype, numbers, each.name))
            made[each.name] = restored
            meter.add(codes.tensor.nbytes)
        derivation = Derivation(
            "copy",
            {"dequantized": scheme.id, "dtype": dtype},
            made,
            removed=frozenset(each.scale_name for each in tensors),
            config={key: value for key, value in config.items() if key != FIELD},
        )
        return derive_model(
            session, origin, derivation, name=target, version=version, compression=compression, progress=progress
        )


def dequantize_tensor(
    session: Session, model: Model | uuid.UUID | str, name: str, dtype: FloatName | None = None
) -> np.ndarray:
    """A tensor of a quantised model as the floats that it stands for.

    Parameters
    ----------
    dtype
        Of the array; by default that of the tensor before it was quantised.

    Raises
    ------
    ModelNotFound, TensorNotFound
        There is no such model, or it has no such tensor.
    QuantizationError
        The tensor is not quantised: `read_tensor` reads it.
    ModelFolderError
        The model's config does not fit its tensors.

    Examples
    --------
    >>> dequantize_tensor(session, "minilm@2", "pooler.dense.weight", "F32").dtype  # doctest: +SKIP
    dtype('float32')
    """
    found = find_model(session, model)
    codes = read_tensor(session, found, name)
    scheme, tensors = _describe(found, read_config(session, found), weights_of(session, found))
    described = {each.name: each for each in tensors}.get(name)
    if described is None:
        raise QuantizationError(f"tensor {name!r} of {found.name}@{found.version} is not quantised; read_tensor has it")
    quantized = Quantized(codes, read_tensor(session, found, described.scale_name))
    wanted = described.dtype if dtype is None else _float(dtype)
    return _as(wanted, scheme.dequantize(quantized, described.shape), name)


def _describe(
    model: Model, config: Mapping[str, Any], weights: Sequence[ModelWeight]
) -> tuple[Scheme, Sequence[QuantizedTensor]]:
    """The scheme of a quantised model and its quantised tensors, which fit those that there are."""
    described = Description.of(config)
    if described is None:
        raise QuantizationError(f"{model.name}@{model.version} was not quantised by arc-halo; its tensors are numbers")
    scheme = quantization.scheme(described.scheme)
    stored = {weight.name: (weight.tensor.dtype, tuple(weight.tensor.shape)) for weight in weights}
    for each in described.tensors.values():
        parts = [stored.get(each.name), stored.get(each.scale_name)]
        if parts != [
            (scheme.codes_dtype.name, scheme.codes_shape(each.shape)),
            (SCALE_DTYPE.name, scheme.scale_shape(each.shape)),
        ] or not prod(each.shape):
            raise ModelFolderError(
                f"{model.name}@{model.version}: config.json describes {each.name!r} as {scheme.id} of "
                f"{list(each.shape)}, which its tensors are not; restore config.json"
            )
    return scheme, list(described.tensors.values())


def _float(dtype: str) -> DType:
    if dtype not in SUITABLE:
        raise ConfigurationError(f"{dtype!r} is no type to dequantise to; give one of {', '.join(sorted(SUITABLE))}")
    return by_name(dtype)


def _as(dtype: DType, numbers: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = numbers.astype(dtype.numpy)
    if not np.isfinite(cast).all():
        raise TensorError(f"tensor {name!r} holds numbers too large for {dtype.name}; dequantise it as F32")
    return cast

"""Quantised models and tensors as the floats that they stand for."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Literal

import numpy as np

from arc_halo.dtypes import by_name
from arc_halo.errors import ConfigurationError, QuantizationError, TensorError
from arc_halo.quantization.abc import SUITABLE
from arc_halo.quantization.description import FIELD
from arc_halo.registry.deriving import Derivation, derive_model, read_config, refuse_names, tie_roots
from arc_halo.registry.forms import refuse_lasting_blocks, stored_forms
from arc_halo.registry.matrices import wanted_of
from arc_halo.registry.naming import find_model
from arc_halo.registry.reading import tensor_not_found, weights_of
from arc_halo.registry.streaming import Spool, read_blocks
from arc_halo.store import Meter

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.dtypes import DType
    from arc_halo.quantization.form import StoredForm
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
        The model is not quantised, or by another tool, or in blocks that cannot be dequantised.
    ModelFolderError
        Its config does not fit its tensors.
    TensorError
        A number is too large for the type.
    """
    origin = find_model(session, model)
    target = origin.name if name is None else name
    refuse_names(session, target, version)
    weights = weights_of(session, origin)
    refuse_lasting_blocks(origin, weights)
    forms = stored_forms(origin, weights)
    if not forms:
        raise QuantizationError(f"{origin.name}@{origin.version} was not quantised by arc-halo; its tensors are floats")
    wanted = None if dtype is None else _float(dtype)
    roots = tie_roots(weights)
    untied = [form for each, form in forms.items() if roots[each].name == each]
    by_its_name = {weight.name: weight for weight in weights}
    config = {key: value for key, value in read_config(session, origin).items() if key != FIELD}
    with Spool() as spool, session.begin_nested():
        made: dict[str, SpooledTensor] = {}
        meter = Meter(progress, "dequantize", sum(_nbytes(form, by_its_name) for form in untied))
        for form in untied:
            first = form.parts[0]
            restored = made[first] = spool.tensor(first, wanted or form.dtype, form.shape)
            for blocks in read_blocks(session, *(wanted_of(by_its_name[part]) for part in form.parts)):
                restored.append(_as(restored.dtype, form.floats(*blocks), first))
                meter.add(sum(block.nbytes for block in blocks))
        derivation = Derivation(
            "copy",
            {"dequantized": sorted({form.scheme for form in untied}), "dtype": dtype},
            made,
            removed=frozenset(part for form in forms.values() for part in form.parts[1:]),
            trainable=True,  # whether the floats before could be trained is not known any more
            config=config,
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
        The tensor is not quantised, or in blocks that cannot be dequantised: `read_tensor` reads it.
    ModelFolderError
        The model's config does not fit its tensors.

    Examples
    --------
    >>> dequantize_tensor(session, "minilm@2", "pooler.dense.weight", "F32").dtype  # doctest: +SKIP
    dtype('float32')
    """
    found = find_model(session, model)
    weights = {weight.name: weight for weight in weights_of(session, found)}
    if name not in weights:
        raise tensor_not_found(found, name, weights)
    form = stored_forms(found, list(weights.values())).get(name)
    if form is None:
        refuse_lasting_blocks(found, [weights[name]])
        raise QuantizationError(f"tensor {name!r} of {found.name}@{found.version} is not quantised; read_tensor has it")
    wanted = form.dtype if dtype is None else _float(dtype)
    rows = prod(form.shape[:-1])
    array = np.empty((rows, form.columns), wanted.numpy)
    first = 0
    for blocks in read_blocks(session, *(wanted_of(weights[part]) for part in form.parts)):
        array[first : first + len(blocks[0])] = _as(wanted, form.floats(*blocks), name)
        first += len(blocks[0])
    return array.reshape(form.shape)


def _nbytes(form: StoredForm, weights: Mapping[str, ModelWeight]) -> int:
    return sum(weights[part].tensor.nbytes for part in form.parts)


def _float(dtype: str) -> DType:
    if dtype not in SUITABLE:
        raise ConfigurationError(f"{dtype!r} is no type to dequantise to; give one of {', '.join(sorted(SUITABLE))}")
    return by_name(dtype)


def _as(dtype: DType, numbers: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(numbers).all():
        raise TensorError(f"tensor {name!r} has codes or scales that stand for no number; restore it from a copy")
    with np.errstate(over="ignore"):
        cast = numbers.astype(dtype.numpy)
    if not np.isfinite(cast).all():
        raise TensorError(f"tensor {name!r} holds numbers too large for {dtype.name}; dequantise it as F32")
    return cast

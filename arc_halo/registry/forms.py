"""In which form the tensors of a model are stored that stand for floats."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from arc_halo import quantization
from arc_halo.dtypes import by_name
from arc_halo.errors import ModelFolderError, QuantizationError
from arc_halo.quantization import Description
from arc_halo.quantization.abc import SCALE_DTYPE
from arc_halo.quantization.form import CodesWithScales, GgmlBlocks
from arc_halo.quantization.ggml import DEQUANTIZABLE
from arc_halo.registry.streaming import read_blocks
from arc_halo.store import Wanted, get_rows
from arc_halo.store.get import selection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.quantization import QuantizedTensor, Scheme
    from arc_halo.quantization.form import StoredForm
    from arc_halo.schema import Model, ModelWeight


def stored_forms(model: Model, weights: Sequence[ModelWeight]) -> dict[str, StoredForm]:
    """The forms of a model's quantised tensors by their names; none for what is floats already.

    Those of our own schemes are known by the config, blocks of ggml's types by the type of the stored tensor.

    Raises
    ------
    ModelFolderError
        The model's config does not fit its tensors.
    """
    forms: dict[str, StoredForm] = {
        weight.name: GgmlBlocks(weight.name, by_name(weight.tensor.dtype), tuple(weight.tensor.shape))
        for weight in weights
        if weight.tensor.dtype in DEQUANTIZABLE
    }
    described = Description.of(model.architecture_config)
    if described is None:
        return forms
    scheme = quantization.scheme(described.scheme)
    stored = {weight.name: (weight.tensor.dtype, tuple(weight.tensor.shape)) for weight in weights}
    for each in described.tensors.values():
        parts = [stored.get(each.name), stored.get(each.scale_name)]
        if parts != _expected(scheme, each) or not prod(each.shape):
            raise ModelFolderError(
                f"{model.name}@{model.version}: config.json describes {each.name!r} as {scheme.id} of "
                f"{list(each.shape)}, which its tensors are not; restore config.json"
            )
    return forms | {name: CodesWithScales(scheme, each) for name, each in described.tensors.items()}


def _expected(scheme: Scheme, described: QuantizedTensor) -> list[tuple[str, tuple[int, ...]]]:
    codes = (scheme.codes_dtype.name, scheme.codes_shape(described.shape))
    return [codes, (SCALE_DTYPE.name, scheme.scale_shape(described.shape))]


def refuse_lasting_blocks(model: Model, weights: Sequence[ModelWeight]) -> None:
    """Raise `QuantizationError` if any of these weights is in blocks that cannot become floats."""
    types = sorted(
        {each.tensor.dtype for each in weights if by_name(each.tensor.dtype).is_block} - DEQUANTIZABLE.keys()
    )
    if types:
        raise QuantizationError(
            f"{model.name}@{model.version} has blocks of {', '.join(types)}, which cannot be dequantised, only "
            f"{', '.join(DEQUANTIZABLE)} can; use the model as it is, or export it for a tool that knows them"
        )


def restore(form: StoredForm, parts: Sequence[np.ndarray]) -> np.ndarray:
    """The floats, of their own type, that whole parts of a form stand for."""
    return _floats(form, parts).reshape(form.shape)


def read_floats(
    session: Session, form: StoredForm, weights: Mapping[str, ModelWeight], rows: int | slice | None
) -> np.ndarray:
    """The floats of a stored form, or rows of their first axis. Of a whole tensor codes are held a piece at a time.

    Raises
    ------
    SliceError
        A row outside the tensor, or rows of a scalar.
    """
    parts = [Wanted(part, weights[part].tensor_id, weights[part].tensor.nbytes) for part in form.parts]
    if rows is not None and len(form.shape) > 1:
        stored = [get_rows(session, part, rows) for part in parts]
        return _floats(form, stored).reshape(*stored[0].shape[:-1], form.columns)
    if rows is not None:
        selection(rows, form.shape, form.parts[0])
    array = np.empty((prod(form.shape[:-1]), form.columns), form.dtype.numpy)
    first = 0
    for blocks in read_blocks(session, *parts):
        array[first : first + len(blocks[0])] = _floats(form, blocks)
        first += len(blocks[0])
    whole = array.reshape(form.shape)
    return whole if rows is None else whole[rows]  # a vector is one row, and read whole


def _floats(form: StoredForm, parts: Sequence[np.ndarray]) -> np.ndarray:
    """A matrix of the form's floats; what its type does not hold becomes infinite, as in any cast."""
    numbers = form.floats(*(part.reshape(prod(part.shape[:-1]), part.shape[-1]) for part in parts))
    with np.errstate(over="ignore"):
        return numbers.astype(form.dtype.numpy, copy=False)

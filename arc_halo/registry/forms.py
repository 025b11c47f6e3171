"""In which form the tensors of a model are stored that stand for floats."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from arc_halo import quantization
from arc_halo.errors import ModelFolderError
from arc_halo.quantization import Description
from arc_halo.quantization.abc import SCALE_DTYPE
from arc_halo.quantization.form import CodesWithScales

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arc_halo.quantization import QuantizedTensor, Scheme
    from arc_halo.quantization.form import StoredForm
    from arc_halo.schema import Model, ModelWeight


def stored_forms(model: Model, weights: Sequence[ModelWeight]) -> dict[str, StoredForm]:
    """The forms of a model's quantised tensors by their names; none for what is floats already.

    Raises
    ------
    ModelFolderError
        The model's config does not fit its tensors.
    """
    described = Description.of(model.architecture_config)
    if described is None:
        return {}
    scheme = quantization.scheme(described.scheme)
    stored = {weight.name: (weight.tensor.dtype, tuple(weight.tensor.shape)) for weight in weights}
    for each in described.tensors.values():
        parts = [stored.get(each.name), stored.get(each.scale_name)]
        if parts != _expected(scheme, each) or not prod(each.shape):
            raise ModelFolderError(
                f"{model.name}@{model.version}: config.json describes {each.name!r} as {scheme.id} of "
                f"{list(each.shape)}, which its tensors are not; restore config.json"
            )
    return {name: CodesWithScales(scheme, each) for name, each in described.tensors.items()}


def _expected(scheme: Scheme, described: QuantizedTensor) -> list[tuple[str, tuple[int, ...]]]:
    codes = (scheme.codes_dtype.name, scheme.codes_shape(described.shape))
    return [codes, (SCALE_DTYPE.name, scheme.scale_shape(described.shape))]

"""Which tensors of a model are quantised or pruned, and what of their bytes is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from arc_halo.errors import TensorNotFound
from arc_halo.quantization.abc import SUITABLE
from arc_halo.registry.deriving import tie_roots
from arc_halo.registry.reading import tensor_not_found
from arc_halo.schema import TransformerLayer
from arc_halo.store import Wanted

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable

    from sqlalchemy.orm import Session

    from arc_halo.schema import Model, ModelWeight

_LAYER_TYPES: Final = ("attention", "feedforward")
# A handful of numbers that decide where everything else goes.
_ROUTERS: Final = ("router", "shared_expert_gate")
_MATRIX: Final = 2


@dataclass(frozen=True, slots=True)
class Selection:
    """Weights to work on, none of them tied to another; names of those left out for NaN or infinity."""

    weights: Sequence[ModelWeight]
    not_finite: Sequence[str]


Patterns = str | Sequence[str]
"""One shell pattern over names of tensors, or several."""


def listed(patterns: Patterns | None) -> list[str] | None:
    """Patterns as a recipe holds them."""
    return [patterns] if isinstance(patterns, str) else None if patterns is None else list(patterns)


def select_matrices(
    session: Session,
    model: Model,
    weights: Sequence[ModelWeight],
    include: Patterns | None = None,
    exclude: Patterns | None = None,
) -> Selection:
    """Choose among a model's matrices of floats of 16 bits and more, stacks of matrices among them.

    Parameters
    ----------
    include
        Names to choose; None for the linear maps of attention and feed-forward, without routers.
    exclude
        Names not to choose, though they are included; nor what they are tied to.

    Raises
    ------
    TensorNotFound
        Nothing is chosen.
    """
    matrices = {each.name: each for each in weights if _is_matrix(each)}
    if include is None:
        linear = _linear_layers(session, model)
        wanted = {name for name, each in matrices.items() if each.category == "weight" and each.layer_id in linear}
    else:
        wanted = _matching(matrices, include)
    roots = tie_roots(weights)
    excluded = {roots[name].id for name in _matching(matrices, exclude or ())}
    chosen = {roots[name].id: roots[name] for name in matrices if name in wanted and roots[name].id not in excluded}
    finite = [each for each in chosen.values() if not (each.tensor.nan_count or each.tensor.inf_count)]
    if finite:
        names = {each.name for each in finite}
        return Selection(finite, [each.name for each in chosen.values() if each.name not in names])
    raise _nothing(model, matrices, include, is_chosen=bool(chosen), is_excluded=bool(wanted and excluded))


def _matching(names: Iterable[str], patterns: Patterns) -> set[str]:
    listed_patterns = listed(patterns) or []
    return {name for name in names if any(fnmatchcase(name, each) for each in listed_patterns)}


def _nothing(
    model: Model, names: Iterable[str], include: Patterns | None, *, is_chosen: bool, is_excluded: bool
) -> TensorNotFound:
    where = f"{model.name}@{model.version}"
    if is_chosen:
        return TensorNotFound(f"{where}: all tensors that are included hold NaN or infinity; repair or exclude them")
    if is_excluded:
        return TensorNotFound(f"{where}: all tensors that are included are excluded, too; exclude fewer")
    names = list(names)
    if not names:
        return TensorNotFound(f"{where} has no matrices of floats; dequantize it first, if it is quantised")
    if include is not None:
        return tensor_not_found(model, ", ".join(listed(include) or ()), names)
    return TensorNotFound(
        f"{where} has no matrices of floats in attention or feed-forward layers; name tensors by a pattern to include"
    )


def wanted_of(weight: ModelWeight) -> Wanted:
    """What the store is asked for."""
    return Wanted(weight.name, weight.tensor_id, weight.tensor.nbytes)


def _is_matrix(weight: ModelWeight) -> bool:
    tensor = weight.tensor
    is_parameter = weight.category != "buffer"
    return is_parameter and tensor.dtype in SUITABLE and len(tensor.shape) >= _MATRIX and tensor.element_count > 0


def _linear_layers(session: Session, model: Model) -> set[uuid.UUID]:
    statement = select(TransformerLayer).where(
        TransformerLayer.model_id == model.id, TransformerLayer.layer_type.in_(_LAYER_TYPES)
    )
    return {layer.id for layer in session.scalars(statement) if layer.config.get("role") not in _ROUTERS}

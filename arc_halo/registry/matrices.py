"""Which tensors of a model are quantised or pruned, and what of their bytes is read."""

from __future__ import annotations

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
    from collections.abc import Sequence

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


def select_matrices(session: Session, model: Model, weights: Sequence[ModelWeight], include: str | None) -> Selection:
    """Choose among a model's matrices of floats of 16 bits and more, stacks of matrices among them.

    Parameters
    ----------
    include
        A shell pattern over names; None for the linear maps of attention and feed-forward, without routers.

    Raises
    ------
    TensorNotFound
        Nothing is chosen.
    """
    matrices = [each for each in weights if _is_matrix(each)]
    if include is None:
        linear = _linear_layers(session, model)
        wanted = {each.name for each in matrices if each.category == "weight" and each.layer_id in linear}
    else:
        wanted = {each.name for each in matrices if fnmatchcase(each.name, include)}
    roots = tie_roots(weights)
    chosen = list({roots[name].id: roots[name] for name in (each.name for each in matrices) if name in wanted}.values())
    finite = [each for each in chosen if not (each.tensor.nan_count or each.tensor.inf_count)]
    if finite:
        return Selection(finite, [each.name for each in chosen if each not in finite])
    if include is not None:
        raise tensor_not_found(model, include, [each.name for each in matrices])
    raise TensorNotFound(
        f"{model.name}@{model.version} has no matrices of floats in attention or feed-forward layers; "
        f"name tensors by a pattern to include"
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

"""What a model's tensors are stored as deltas of: a named model, a parent, the version before, or a relative."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final, TypeAlias

from sqlalchemy import select

from arc_halo.codecs.delta import is_comparable
from arc_halo.dtypes import by_name
from arc_halo.registry.naming import find_model, newest_version
from arc_halo.schema import Model, ModelWeight, Tensor
from arc_halo.store.relatives import find_relatives

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.store import TensorSource
    from arc_halo.store.put import ChooseBases

BaseChoice: TypeAlias = Model | uuid.UUID | str | None
"""A model or its reference, ``"auto"``, or None."""
AUTO: Final = "auto"


def base_chooser(
    session: Session, name: str, base: BaseChoice, parent: Model | None, compression: PolicyName
) -> ChooseBases:
    """How to find bases for the tensors of a model about to be stored.

    Parameters
    ----------
    name
        The model's.
    base
        A model; ``"auto"`` for the parent, else the newest version of that name, and for tensors that have no
        counterpart there the nearest relative in the database; None for no deltas.
    parent
        What the model was made from, if that is known.
    compression
        Under ``fast`` nobody is searched for: each tensor would have to be read for its sketch.

    Raises
    ------
    ModelNotFound
        There is no such base.
    """
    if base is None:
        return lambda _: {}
    if base != AUTO:
        named = find_model(session, base)
        return lambda sources: _counterparts(session, named, sources)
    nearest = parent or newest_version(session, name)

    def choose(sources: Sequence[TensorSource]) -> Mapping[str, uuid.UUID]:
        known = {} if nearest is None else _counterparts(session, nearest, sources)
        if compression == "fast":
            return known
        return find_relatives(session, [source for source in sources if source.name not in known]) | known

    return choose


def _counterparts(session: Session, model: Model, sources: Sequence[TensorSource]) -> dict[str, uuid.UUID]:
    """The model's tensors of the same names that differ in no axis but the first."""
    statement = (
        select(ModelWeight.name, Tensor.id, Tensor.dtype, Tensor.shape)
        .join(Tensor, Tensor.id == ModelWeight.tensor_id)
        .where(ModelWeight.model_id == model.id)
    )
    stored = {
        name: (tensor_id, by_name(dtype), tuple(shape)) for name, tensor_id, dtype, shape in session.execute(statement)
    }
    found = {}
    for source in sources:
        if source.name not in stored:
            continue
        tensor_id, dtype, shape = stored[source.name]
        is_grown = len(shape) == len(source.shape) and shape[1:] == source.shape[1:]
        if is_grown and is_comparable(dtype, source.dtype):
            found[source.name] = tensor_id
    return found

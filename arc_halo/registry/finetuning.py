"""A new version of a model from weights that training has stored: nothing is copied."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from arc_halo.dtypes import by_name
from arc_halo.formats.architectures import Architecture, describe
from arc_halo.registry.deriving import inherited_files, read_config, refuse_names, tie_roots
from arc_halo.registry.lineage import add_lineage
from arc_halo.registry.origins import without_origin
from arc_halo.registry.publishing import publish_model
from arc_halo.registry.reading import weights_of
from arc_halo.registry.searchable import inherit_searchable, put_searchable

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.dtypes import DType
    from arc_halo.schema import Model, ModelWeight
    from arc_halo.store import Progress


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of the store, as a weight of that name."""

    name: str
    tensor_id: uuid.UUID
    dtype: DType
    shape: tuple[int, ...]
    nbytes: int

    @classmethod
    def of(cls, weight: ModelWeight) -> StoredTensor:
        """What a weight is of now."""
        tensor = weight.tensor
        return cls(weight.name, tensor.id, by_name(tensor.dtype), tuple(tensor.shape), tensor.nbytes)


def finetuned_model(
    session: Session,
    origin: Model,
    tensors: Sequence[StoredTensor],
    *,
    name: str,
    version: str | None,
    recipe: Mapping[str, Any],
    progress: Progress | None = None,
) -> Model:
    """Publish a new version of a model with other weights, in the caller's transaction.

    Weights that are not given are what they are tied to, or those of the origin, unless no name given is one of the
    origin's: then its buffers alone are. Its config and its other files are the origin's; rows of new embedding
    matrices are searchable where those of the origin's are.

    Raises
    ------
    ModelExists, InvalidName
        The version is taken, or no name.
    """
    refuse_names(session, name, version)
    weights = weights_of(session, origin)
    kept = _with_inherited(weights, {each.name: each for each in tensors})
    model = publish_model(
        session,
        name,
        version,
        config=without_origin(origin.architecture_config),
        status="trained",
        architecture=_architecture(session, origin, weights, kept),
        tensor_ids={each: stored.tensor_id for each, stored in kept.items()},
        files=inherited_files(session, origin, None),
    )
    add_lineage(session, model, origin, "finetune", recipe)
    unchanged = {weight.tensor_id for weight in weights}
    changed = {each: stored for each, stored in kept.items() if stored.tensor_id not in unchanged}
    put_searchable(
        session,
        inherit_searchable(session, origin, changed),
        {each: stored.tensor_id for each, stored in changed.items()},
        upload_nbytes=sum(stored.nbytes for stored in changed.values()),
        progress=progress,
    )
    return model


def _with_inherited(weights: Sequence[ModelWeight], given: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors in the order of the origin's weights, and what is new behind."""
    roots = tie_roots(weights)
    is_part = any(weight.name in given for weight in weights)
    kept = {}
    for weight in weights:
        if weight.name in given:
            kept[weight.name] = given[weight.name]
        elif roots[weight.name].name in given:
            kept[weight.name] = replace(given[roots[weight.name].name], name=weight.name)
        elif is_part or weight.category == "buffer":
            kept[weight.name] = StoredTensor.of(weight)
    return kept | {name: stored for name, stored in given.items() if name not in kept}


def _architecture(
    session: Session, origin: Model, weights: Sequence[ModelWeight], tensors: Mapping[str, StoredTensor]
) -> Architecture:
    """Told anew from config and names, with what was said of the origin's weights by hand."""
    architecture = describe(read_config(session, origin), tensors)
    known = {weight.name: weight for weight in weights}
    roots = tie_roots(weights)
    specs = []
    for spec in architecture.weights:
        if (weight := known.get(spec.name)) is not None:
            root = roots[spec.name].name
            tied_to = root if root != spec.name and root in tensors else spec.tied_to
            spec = replace(spec, is_trainable=weight.is_trainable, tied_to=tied_to)  # noqa: PLW2901  the same weight
        specs.append(spec)
    return replace(architecture, weights=tuple(specs))

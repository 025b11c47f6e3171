"""A new version of a model in which some tensors are others: same layers, same heads, its lineage written down."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, true
from sqlalchemy.orm import undefer

from arc_halo.errors import ConstraintViolation, ModelFolderError, TransactionConflict
from arc_halo.formats.architectures import Architecture, HeadSlice, HeadSpec, LayerSpec, WeightSpec
from arc_halo.formats.strict_json import parse_object
from arc_halo.registry.bases import AUTO, base_chooser
from arc_halo.registry.lineage import add_lineage
from arc_halo.registry.naming import check_name
from arc_halo.registry.origins import without_origin
from arc_halo.registry.publishing import PROJECTIONS, StoredFile, publish_model, refuse_taken
from arc_halo.registry.reading import weights_of
from arc_halo.registry.searchable import inherit_searchable, put_searchable
from arc_halo.schema import AttentionHead, ModelFile, TransformerLayer
from arc_halo.store import put_tensors

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.registry.lineage import Kind
    from arc_halo.schema import Model, ModelWeight
    from arc_halo.store import Progress, TensorSource

ATTEMPTS = 3
CONFIG_NAME = "config.json"


@dataclass(frozen=True, slots=True)
class Derivation:
    """What becomes of a model.

    Attributes
    ----------
    replaced
        New tensors by the names of the weights that they become; what is tied to one of those becomes it, too.
    added
        New tensors, buffers all, by the names of the weights that they belong to and come behind.
    removed
        Names of weights that the new version does not have.
    trainable
        Whether training may change the new tensors; None for what it may change of the old.
    config
        The new version's config.json; None for the same, and then its files keep the layout of the old.
    """

    kind: Kind
    recipe: Mapping[str, Any]
    replaced: Mapping[str, TensorSource]
    added: Mapping[str, TensorSource] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()
    trainable: bool | None = None
    config: Mapping[str, Any] | None = None


def refuse_names(session: Session, name: str, version: str | None) -> None:
    """Raise `InvalidName` or `ModelExists` before any work is done."""
    check_name("name", name)
    if version is not None:
        check_name("version", version)
    refuse_taken(session, name, version)


def read_config(session: Session, model: Model) -> dict[str, Any]:
    """The model's config, in the order of its file where it has one."""
    statement = select(ModelFile.content).where(ModelFile.model_id == model.id, ModelFile.path == CONFIG_NAME)
    content = session.scalar(statement)
    return without_origin(model.architecture_config) if content is None else parse_object(content, CONFIG_NAME)


def tie_roots(weights: Sequence[ModelWeight]) -> dict[str, ModelWeight]:
    """For each weight's name the weight it is tied to, or itself."""
    by_id = {weight.id: weight for weight in weights}
    return {weight.name: by_id[weight.tied_to_id] if weight.tied_to_id else weight for weight in weights}


def derive_model(
    session: Session,
    origin: Model,
    derivation: Derivation,
    *,
    name: str,
    version: str | None,
    compression: PolicyName,
    progress: Progress | None,
) -> Model:
    """Store the new tensors and publish the new version, in the caller's transaction.

    Rows of new embedding matrices are searchable where those of the origin's are; codes are none to be searched.

    Raises
    ------
    ModelExists
        The version is taken.
    TransactionConflict
        Tensors were pruned before they were published.
    """
    weights = [each for each in weights_of(session, origin) if each.name not in derivation.removed]
    sources = [*derivation.replaced.values(), *derivation.added.values()]
    choose_bases = base_chooser(session, name, AUTO, origin, compression)
    config = without_origin(origin.architecture_config) if derivation.config is None else derivation.config
    architecture = _architecture(session, origin, weights, derivation)
    floats = {each: source for each, source in derivation.replaced.items() if each not in derivation.added}
    searchable = inherit_searchable(session, origin, floats)
    for _attempt in range(ATTEMPTS):
        ids = put_tensors(session, sources, compression=compression, choose_bases=choose_bases, progress=progress)
        stored = {source.name: each for source, each in zip(sources, ids, strict=True)}
        try:
            with session.begin_nested():
                nbytes = sum(source.nbytes for source in sources)
                put_searchable(session, searchable, stored, upload_nbytes=nbytes, progress=progress)
                model = publish_model(
                    session,
                    name,
                    version,
                    config=config,
                    status=origin.status,
                    architecture=architecture,
                    tensor_ids=_tensor_ids(weights, derivation, stored),
                    files=inherited_files(session, origin, derivation.config),
                )
                add_lineage(session, model, origin, derivation.kind, derivation.recipe)
                return model
        except ConstraintViolation as error:
            if not error.is_dangling:
                raise  # else a tensor was pruned between upload and publication: upload it again
    raise TransactionConflict(f"tensors of {name!r} were pruned before they were published; prune with a longer grace")


def _tensor_ids(
    weights: Sequence[ModelWeight], derivation: Derivation, stored: Mapping[str, uuid.UUID]
) -> dict[str, uuid.UUID]:
    ids: dict[str, uuid.UUID] = {}
    roots = tie_roots(weights)
    for weight in weights:
        source = derivation.replaced.get(roots[weight.name].name)
        ids[weight.name] = weight.tensor_id if source is None else stored[source.name]
        if (added := derivation.added.get(weight.name)) is not None:
            ids[added.name] = stored[added.name]
    return ids


def _architecture(
    session: Session, origin: Model, weights: Sequence[ModelWeight], derivation: Derivation
) -> Architecture:
    """Layers, weights and heads as the origin's rows have them."""
    statement = select(TransformerLayer).where(TransformerLayer.model_id == origin.id)
    layers = session.scalars(statement.order_by(TransformerLayer.position)).all()
    paths = {layer.id: layer.path for layer in layers}
    specs = []
    roots = tie_roots(weights)
    for weight in weights:
        root = roots[weight.name]
        spec = _weight(weight, paths, root)
        if derivation.trainable is not None and root.name in derivation.replaced:
            spec = replace(spec, is_trainable=derivation.trainable and weight.category != "buffer")
        specs.append(spec)
        if (added := derivation.added.get(weight.name)) is not None:
            specs.append(WeightSpec(added.name, spec.layer_key, "buffer", None, is_trainable=False))
    return Architecture(
        model_type=origin.model_type,
        family="",
        layers=tuple(_layer(layer, paths) for layer in layers),
        weights=tuple(specs),
        heads=tuple(_heads(session, origin, paths, weights)),
        embeddings=(),
        unrecognised=0,
        notes=(),
    )


def _layer(layer: TransformerLayer, paths: Mapping[uuid.UUID, str]) -> LayerSpec:
    return LayerSpec(
        key=layer.path,
        parent_key=paths[layer.parent_id] if layer.parent_id else None,
        name=layer.name,
        layer_index=layer.layer_index,
        layer_type=layer.layer_type,  # type: ignore[arg-type]  # a CHECK holds it to the set
        input_dim=layer.input_dim,
        output_dim=layer.output_dim,
        config=layer.config,
    )


def _weight(weight: ModelWeight, paths: Mapping[uuid.UUID, str], root: ModelWeight) -> WeightSpec:
    if weight.layer_id is None:
        raise ModelFolderError(f"weight {weight.name!r} belongs to no layer; give it one first")
    return WeightSpec(
        name=weight.name,
        layer_key=paths[weight.layer_id],
        category=weight.category,  # type: ignore[arg-type]  # a CHECK holds it to the set
        tied_to=root.name if weight.tied_to_id else None,
        is_trainable=weight.is_trainable,
    )


def _heads(
    session: Session, origin: Model, paths: Mapping[uuid.UUID, str], weights: Sequence[ModelWeight]
) -> Iterator[HeadSpec]:
    """Those of which all projections are known; a head whose weight was deleted is left out."""
    names = {weight.id: weight.name for weight in weights}
    for head in read_heads(session, origin):
        slices = [head_slice(head, projection, names) for projection in PROJECTIONS]
        if all(each is not None for each in slices):
            yield HeadSpec(paths[head.layer_id], head.head_index, head.head_dim, head.kv_group, *slices)  # type: ignore[arg-type]  # just looked at


def read_heads(session: Session, model: Model) -> Sequence[AttentionHead]:
    """The model's attention heads, layer by layer."""
    statement = select(AttentionHead).join(TransformerLayer, TransformerLayer.id == AttentionHead.layer_id)
    statement = statement.where(TransformerLayer.model_id == model.id)
    return session.scalars(statement.order_by(TransformerLayer.position, AttentionHead.head_index)).all()


def head_slice(head: AttentionHead, projection: str, names: Mapping[uuid.UUID, str]) -> HeadSlice | None:
    """The part of a projection that is the head's; None where its weight is not among the names."""
    name = names.get(getattr(head, f"{projection}_weight_id"))
    parts = (getattr(head, f"{projection}_{each}") for each in ("axis", "start", "stop"))
    return None if name is None else HeadSlice(name, *parts)


def inherited_files(session: Session, origin: Model, config: Mapping[str, Any] | None) -> Iterator[StoredFile]:
    """The origin's files, one in memory at a time.

    Where types or shapes of tensors change the headers of weights files are left out: an export lays them out anew.
    """
    kept = ModelFile.kind.not_in(["weights", "index"]) if config is not None else true()
    chosen = select(ModelFile.id).where(ModelFile.model_id == origin.id, kept).order_by(ModelFile.position)
    for file_id in session.scalars(chosen).all():
        file = session.get_one(ModelFile, file_id, options=[undefer(ModelFile.content)], populate_existing=True)
        content, nbytes = file.content, file.nbytes
        if config is not None and file.path == CONFIG_NAME:
            content = json.dumps(config, indent=2).encode() + b"\n"
            nbytes = len(content)
        yield StoredFile(file.path, file.kind, nbytes, content)
        session.expire(file, ["content"])

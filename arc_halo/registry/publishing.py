"""The rows of a model, written when its tensors are there: from this commit on it exists."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from blake3 import blake3
from sqlalchemy import func, insert, select

from arc_halo.errors import ConstraintViolation, ModelExists
from arc_halo.registry.naming import named, next_version
from arc_halo.schema import AttentionHead, Model, ModelAlias, ModelFile, ModelWeight, TransformerLayer
from arc_halo.schema.columns import uuid7
from arc_halo.store.manifest import set_weights_digest

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Mapping

    from sqlalchemy.orm import Session

    from arc_halo.formats.architectures import Architecture, HeadSpec

ATTEMPTS = 10
PROJECTIONS = ("query", "key", "value", "output")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A row of ``model_files`` about to be written."""

    path: str
    kind: str
    nbytes: int
    content: bytes


def publish_model(
    session: Session,
    name: str,
    version: str | None,
    *,
    op_id: uuid.UUID | None = None,
    config: Mapping[str, Any],
    status: str,
    architecture: Architecture,
    tensor_ids: Mapping[str, uuid.UUID],
    files: Iterable[StoredFile] = (),
) -> Model:
    """Insert a model and everything that hangs on it, in the caller's transaction.

    Parameters
    ----------
    op_id
        The id that the model gets; a new one by default.

    Raises
    ------
    ModelExists
        The version is taken.
    """
    model = _insert_model(session, name, version, op_id=op_id, config=config, status=status, architecture=architecture)
    layer_ids = _insert_layers(session, model, architecture)
    weight_ids = _insert_weights(session, model, architecture, tensor_ids, layer_ids)
    heads = [_head_row(head, layer_ids, weight_ids) for head in architecture.heads]
    if heads:
        session.execute(insert(AttentionHead), heads)
    _insert_files(session, model, files)
    set_weights_digest(session, model.id)
    session.refresh(model)
    return model


def find_published(session: Session, op_id: uuid.UUID | None, name: str) -> Model | None:
    """The model that an earlier run with this ``op_id`` has published, waiting for one that is under way.

    Raises
    ------
    ModelExists
        The id is that of a model of another name.
    """
    if op_id is None:
        return None
    key = func.pg_catalog.hashtextextended(f"arc_halo.op_id {op_id}", 0)
    session.execute(select(func.pg_catalog.pg_advisory_xact_lock(key)))
    model = session.get(Model, op_id)
    if model is not None and model.name != name:
        raise ModelExists(f"op_id {op_id} is that of model {model.name!r}; give {name!r} an id of its own")
    return model


def refuse_taken(session: Session, name: str, version: str | None) -> None:
    """Raise `ModelExists` before any work is done, where it is certain already."""
    if version is None:
        return
    if session.scalar(select(Model.id).where(named(Model, name), Model.version == version)):
        raise ModelExists(f"model {name!r} has a version {version!r}; give another, or none to number it")
    if session.scalar(select(ModelAlias.id).where(named(ModelAlias, name), ModelAlias.alias == version)):
        raise ModelExists(f"model {name!r} has an alias {version!r}, which the version would hide; give another")


def _insert_model(
    session: Session,
    name: str,
    version: str | None,
    *,
    op_id: uuid.UUID | None,
    config: Mapping[str, Any],
    status: str,
    architecture: Architecture,
) -> Model:
    if version is None:
        # Who numbers the same name waits here for its turn, not in a race for the next number that some always lose.
        key = func.pg_catalog.hashtextextended(f"arc_halo.models {name}", 0)
        session.execute(select(func.pg_catalog.pg_advisory_xact_lock(key)))
    for _attempt in range(ATTEMPTS):
        model = Model(
            id=op_id or uuid7(),
            name=name,
            version=next_version(session, name) if version is None else version,
            model_type=architecture.model_type or architecture.family,
            architecture_config=dict(config),
            status=status,
        )
        try:
            with session.begin_nested():
                session.add(model)
        except ConstraintViolation as error:
            if not error.is_duplicate:
                raise
            refuse_taken(session, name, version)  # else somebody took the number: the next one
        else:
            return model
    raise ModelExists(f"other imports of {name!r} keep taking the next version; give one by name")


def _insert_layers(session: Session, model: Model, architecture: Architecture) -> dict[str, uuid.UUID]:
    ids = {layer.key: uuid7() for layer in architecture.layers}
    rows = [
        {
            "id": ids[layer.key],
            "model_id": model.id,
            "parent_id": ids[layer.parent_key] if layer.parent_key is not None else None,
            "position": position,
            "path": layer.key,
            "config": dict(layer.config),
        }
        | {each: getattr(layer, each) for each in ("name", "layer_index", "layer_type", "input_dim", "output_dim")}
        for position, layer in enumerate(architecture.layers)
    ]
    if rows:
        session.execute(insert(TransformerLayer), rows)
    return ids


def _insert_weights(
    session: Session,
    model: Model,
    architecture: Architecture,
    tensor_ids: Mapping[str, uuid.UUID],
    layer_ids: Mapping[str, uuid.UUID],
) -> dict[str, uuid.UUID]:
    specs = {weight.name: weight for weight in architecture.weights}
    ids = {name: uuid7() for name in tensor_ids}
    rows = [
        {
            "id": ids[name],
            "model_id": model.id,
            "layer_id": layer_ids[specs[name].layer_key],
            "tensor_id": tensor_id,
            # Two weights that a config calls one may differ in the file: the bytes decide.
            "tied_to_id": ids[tied] if (tied := specs[name].tied_to) and tensor_ids[tied] == tensor_id else None,
            "position": position,
            "name": name,
            "category": specs[name].category,
            "is_trainable": specs[name].is_trainable,
        }
        for position, (name, tensor_id) in enumerate(tensor_ids.items())
    ]
    rows.sort(key=lambda row: row["tied_to_id"] is not None)  # what is tied comes after what it is tied to
    if rows:
        session.execute(insert(ModelWeight), rows)
    return ids


def _head_row(
    head: HeadSpec, layer_ids: Mapping[str, uuid.UUID], weight_ids: Mapping[str, uuid.UUID]
) -> dict[str, Any]:
    row: dict[str, Any] = {"id": uuid7(), "layer_id": layer_ids[head.layer_key]}
    for projection in PROJECTIONS:
        part = getattr(head, projection)
        row[f"{projection}_weight_id"] = weight_ids[part.tensor]
        row |= {f"{projection}_{each}": getattr(part, each) for each in ("axis", "start", "stop")}
    return row | {each: getattr(head, each) for each in ("head_index", "head_dim", "kv_group")}


def _insert_files(session: Session, model: Model, files: Iterable[StoredFile]) -> None:
    tokenizer = blake3()
    for position, file in enumerate(files):
        digest = blake3(file.content).digest()
        row = {each.name: getattr(file, each.name) for each in fields(file)}
        session.execute(insert(ModelFile).values(model_id=model.id, position=position, digest=digest, **row))
        if file.path == "config.json":
            model.config_digest = digest
        if file.kind == "tokenizer":
            tokenizer.update(file.path.encode() + b"\0" + digest)
            model.tokenizer_digest = tokenizer.digest()
    session.flush()

"""Tensors of a model as arrays, whole or by rows, and what training may change of them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from sqlalchemy import select, update

from arc_halo.errors import TensorNotFound
from arc_halo.registry.naming import find_model
from arc_halo.schema import Model, ModelWeight
from arc_halo.store import Fault, Progress, Wanted, check_tensors, get_arrays, get_rows
from arc_halo.store.manifest import explain_weights_digest

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from sqlalchemy.orm import Session


def weights_of(session: Session, model: Model) -> Sequence[ModelWeight]:
    """The model's weights with their tensors, as the database has them now."""
    statement = select(ModelWeight).where(ModelWeight.model_id == model.id).order_by(ModelWeight.position)
    return session.scalars(statement, execution_options={"populate_existing": True}).all()


def read_tensor(
    session: Session, model: Model | uuid.UUID | str, name: str, rows: int | slice | None = None
) -> np.ndarray:
    """A tensor of a model, or rows of its first axis.

    Parameters
    ----------
    rows
        A slice, or one row's number, with numpy's meaning. Only the chunks that hold them are read.

    Returns
    -------
    ndarray
        Of the stored dtype; bfloat16 and float8 are those of ``ml_dtypes``.

    Raises
    ------
    ModelNotFound, TensorNotFound
        There is no such model, or it has no such tensor.
    SliceError
        A row outside the tensor, or rows of a scalar.
    CorruptionError
        Stored bytes are not those that were written.

    Examples
    --------
    >>> read_tensor(session, "minilm", "embeddings.word_embeddings.weight", slice(0, 10)).shape  # doctest: +SKIP
    (10, 384)
    """
    wanted = _wanted(session, find_model(session, model), name)
    if rows is None:
        return next(get_arrays(session, [wanted]))
    return get_rows(session, wanted, rows)


def iter_tensors(
    session: Session, model: Model | uuid.UUID | str, names: Iterable[str] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of a model's tensors, read ahead in bounded windows.

    Parameters
    ----------
    names
        Which tensors, and in which order; by default all, in the order of the imported files.
    """
    found = find_model(session, model)
    by_name = {weight.name: weight for weight in weights_of(session, found)}
    asked = list(by_name) if names is None else list(names)
    for name in asked:
        if name not in by_name:
            raise tensor_not_found(found, name, by_name)
    wanted = [Wanted(name, by_name[name].tensor_id, by_name[name].tensor.nbytes) for name in asked]
    yield from zip(asked, get_arrays(session, wanted), strict=True)


def check_model(
    session: Session, model: Model | uuid.UUID | str, *, progress: Progress | None = None
) -> Iterator[Fault]:
    """Read every stored byte of a model; yields what is not as it was written.

    Raises
    ------
    ModelNotFound
        There is no such model.
    """
    found = find_model(session, model)
    wanted = [Wanted(each.name, each.tensor_id, each.tensor.nbytes) for each in weights_of(session, found)]
    yield from check_tensors(session, wanted, progress)
    if (wrong := explain_weights_digest(session, found.id)) is not None:
        yield Fault("", wrong)


def set_trainable(session: Session, model: Model | uuid.UUID | str, pattern: str, trainable: bool) -> int:
    """Say which weights training may change, by a shell pattern over their names; buffers never are.

    Returns
    -------
    int
        How many weights the pattern matched.

    Raises
    ------
    TensorNotFound
        It matched none.

    Examples
    --------
    >>> set_trainable(session, "minilm", "encoder.layer.[0-3].*", False)  # doctest: +SKIP
    64
    """
    found = find_model(session, model)
    weights = [weight for weight in weights_of(session, found) if weight.category != "buffer"]
    matched = [weight for weight in weights if fnmatchcase(weight.name, pattern)]
    if not matched:
        raise tensor_not_found(found, pattern, [weight.name for weight in weights])
    statement = update(ModelWeight).where(ModelWeight.id.in_([weight.id for weight in matched]))
    session.execute(statement.values(is_trainable=trainable))
    return len(matched)


def _wanted(session: Session, model: Model, name: str) -> Wanted:
    statement = select(ModelWeight).where(ModelWeight.model_id == model.id, ModelWeight.name == name)
    weight = None
    if name.isprintable():  # the driver refuses what no text column holds
        weight = session.scalars(statement, execution_options={"populate_existing": True}).one_or_none()
    if weight is None:
        names = session.scalars(select(ModelWeight.name).where(ModelWeight.model_id == model.id)).all()
        raise tensor_not_found(model, name, names)
    return Wanted(name, weight.tensor_id, weight.tensor.nbytes)


def tensor_not_found(model: Model, name: str, names: Iterable[str]) -> TensorNotFound:
    """The error for a name that no tensor of the model has, with those that come near."""
    tail = name.rsplit(".", maxsplit=2)[-2:]
    near = [each for each in names if each.endswith(".".join(tail))] or list(names)
    shown = ", ".join(near[:5]) + (", ..." if len(near) > 5 else "")  # noqa: PLR2004  # one line's worth
    return TensorNotFound(f"{model.name}@{model.version} has no tensor {name!r}; it has {shown or 'none'}")

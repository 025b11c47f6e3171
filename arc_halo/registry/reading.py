"""Tensors of a model as arrays, whole or by rows, and what training may change of them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from sqlalchemy import select, update

from arc_halo.errors import TensorNotFound
from arc_halo.registry.forms import read_floats, refuse_lasting_blocks, restore, stored_forms
from arc_halo.registry.naming import find_model
from arc_halo.schema import Model, ModelWeight
from arc_halo.store import Fault, Progress, Wanted, check_tensors, get_arrays, get_rows
from arc_halo.store.manifest import explain_weights_digest

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.quantization.form import StoredForm


def weights_of(session: Session, model: Model) -> Sequence[ModelWeight]:
    """The model's weights with their tensors, as the database has them now."""
    statement = select(ModelWeight).where(ModelWeight.model_id == model.id).order_by(ModelWeight.position)
    return session.scalars(statement, execution_options={"populate_existing": True}).all()


def read_tensor(
    session: Session,
    model: Model | uuid.UUID | str,
    name: str,
    rows: int | slice | None = None,
    *,
    dequantize: bool = False,
) -> np.ndarray:
    """A tensor of a model, or rows of its first axis.

    Parameters
    ----------
    rows
        A slice, or one row's number, with numpy's meaning. Only the chunks that hold them are read.
    dequantize
        Give the floats that a quantised tensor stands for: of the type it had before where this package quantised it,
        float32 for blocks of ggml's types. Scales that are not finite give numbers that are not. Tensors that are
        not quantised are read as they are.

    Returns
    -------
    ndarray
        Of the stored dtype; bfloat16 and float8 are those of ``ml_dtypes``, blocks are the bytes of each row.

    Raises
    ------
    ModelNotFound, TensorNotFound
        There is no such model, or it has no such tensor.
    QuantizationError
        The tensor is in blocks that cannot be dequantised.
    SliceError
        A row outside the tensor, or rows of a scalar.
    CorruptionError
        Stored bytes are not those that were written.

    Examples
    --------
    >>> read_tensor(session, "minilm", "embeddings.word_embeddings.weight", slice(0, 10)).shape  # doctest: +SKIP
    (10, 384)
    """
    found = find_model(session, model)
    wanted = _wanted(session, found, name)
    if dequantize:
        weights = {weight.name: weight for weight in weights_of(session, found)}
        if (form := stored_forms(found, list(weights.values())).get(name)) is not None:
            return read_floats(session, form, weights, rows)
        refuse_lasting_blocks(found, [weights[name]])
    if rows is None:
        return next(get_arrays(session, [wanted]))
    return get_rows(session, wanted, rows)


def iter_tensors(
    session: Session,
    model: Model | uuid.UUID | str,
    names: Iterable[str] | None = None,
    *,
    dequantize: bool = False,
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of a model's tensors, read ahead in bounded windows.

    Parameters
    ----------
    names
        Which tensors, and in which order; by default all, in the order of the imported files.
    dequantize
        As in `read_tensor`; scales that stand beside codes are then left out. Of all tensors, those in blocks that
        cannot be dequantised come as the bytes of each row; asked for in ``names`` they are refused.

    Raises
    ------
    ModelNotFound, TensorNotFound
        There is no such model, or it has no such tensor.
    QuantizationError
        A tensor of ``names`` is in blocks that cannot be dequantised.
    CorruptionError
        Stored bytes are not those that were written.
    """
    found = find_model(session, model)
    by_name = {weight.name: weight for weight in weights_of(session, found)}
    asked, forms = choose_tensors(found, by_name, names, dequantize=dequantize)
    parts = [forms[name].parts if name in forms else (name,) for name in asked]
    wanted = [Wanted(part, by_name[part].tensor_id, by_name[part].tensor.nbytes) for each in parts for part in each]
    arrays = get_arrays(session, wanted)
    for name, each in zip(asked, parts, strict=True):
        stored = [next(arrays) for _ in each]
        yield name, restore(forms[name], stored) if name in forms else stored[0]


def choose_tensors(
    model: Model, weights: Mapping[str, ModelWeight], names: Iterable[str] | None, *, dequantize: bool
) -> tuple[list[str], Mapping[str, StoredForm]]:
    """The names that are asked for, and the forms that are to be made floats of.

    Raises
    ------
    TensorNotFound
        The model has no such tensor.
    QuantizationError
        A tensor of ``names`` is to be floats and is in blocks that cannot be dequantised.
    """
    forms = stored_forms(model, list(weights.values())) if dequantize else {}
    if names is None:
        parts = {part for form in forms.values() for part in form.parts[1:]}
        return [name for name in weights if name not in parts], forms
    asked = list(names)
    for name in asked:
        if name not in weights:
            raise tensor_not_found(model, name, weights)
    if dequantize:
        refuse_lasting_blocks(model, [weights[name] for name in asked])
    return asked, forms


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

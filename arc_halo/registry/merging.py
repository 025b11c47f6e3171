"""Models merged into a new one, tensor by tensor and block by block, with all of its parents written down."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arc_halo.errors import MergeError
from arc_halo.merging import Task, drawn_mask
from arc_halo.merging.recipe import DTYPES, Recipe
from arc_halo.registry.aligning import align_models
from arc_halo.registry.deriving import Derivation, derive_model, read_config, refuse_names
from arc_halo.registry.lineage import add_lineage
from arc_halo.registry.matrices import wanted_of
from arc_halo.registry.streaming import Spool, read_numbers
from arc_halo.store import Meter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.merging.abc import Block, Blocks
    from arc_halo.registry.aligning import AlignedTensor, Alignment
    from arc_halo.registry.streaming import SpooledTensor
    from arc_halo.schema import Model
    from arc_halo.store import Progress

# What is no more than this in all models is read once, however often a method looks at it.
_HELD_NBYTES: Final = 4 << 20
_CONFIG_DTYPES: Final = ("torch_dtype", "dtype")


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor that would be merged; ``own`` has the values of the parameters that each model has for itself."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shared: dict[str, Any]
    own: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a merge would do.

    Attributes
    ----------
    read_nbytes, nbytes
        What is read of the models, in all passes, and what the merged tensors take before they are compressed.
    kept
        Names of the tensors that would be the base's.
    """

    method: str
    base: str
    models: list[str]
    tensors: list[PlannedTensor]
    kept: list[str]
    read_nbytes: int
    nbytes: int


def plan_merge(session: Session, recipe: Recipe | str, name: str, version: str | None = None) -> Plan:
    """What `merge_models` would do; it raises what that raises before it reads numbers."""
    recipe = Recipe.parse(recipe) if isinstance(recipe, str) else recipe
    refuse_names(session, name, version)
    aligned = align_models(session, recipe)
    models = {each.id: f"{each.name}@{each.version}" for each in aligned.models.values()}
    planned = [
        PlannedTensor(
            each.name,
            each.dtype.name,
            each.shape,
            dict(each.shared),
            {models[weight.model_id]: dict(own) for weight, own in zip(each.weights, each.inputs, strict=True) if own},
        )
        for each in aligned.tensors
    ]
    return Plan(
        recipe.method.id,
        models[aligned.base.id],
        list(models.values()),
        planned,
        list(aligned.kept),
        sum(recipe.method.passes(_task(each, 0)) * each.nbytes for each in aligned.tensors),
        sum(each.dtype.nbytes(prod(each.shape)) or 0 for each in aligned.tensors),
    )


def merge_models(
    session: Session,
    recipe: Recipe | str,
    name: str,
    *,
    version: str | None = None,
    seed: int = 0,
    compression: PolicyName = "balanced",
    progress: Progress | None = None,
) -> Model:
    """Make a model of several, as a recipe says.

    Layers, config, tokenizer and what is tied are the base's; tensors that are the same in all models are shared with
    it, others stored as differences from its own where that is smaller. The lineage names every model with recipe and
    seed. Numbers are computed in float32, in float64 where any model has that, and rounded once, at the end.

    Tensors are read in blocks, as often as the method has to look at them; what comes of them waits in a temporary
    file (in ``TMPDIR``), not in memory.

    Parameters
    ----------
    recipe
        A `Recipe`, or the text of one: mergekit's YAML with references of this database as names of models.
    name, version
        Of the merged model; the version is by default the next number.
    seed
        What DARE drops is drawn from it: the same seed, recipe and models give the same bits.
    compression
        The lossless policy that the new tensors are stored under.

    Raises
    ------
    RecipeError
        The recipe makes no sense; the message says where.
    ModelNotFound, ModelExists
        There is no such model, or the version is taken.
    MergeError
        The models do not fit together, or a merged number is too large for its type; the message names tensors.

    Examples
    --------
    >>> merge_models(session, Path("ties.yml").read_text(), "merged", seed=1).version  # doctest: +SKIP
    '1'
    """
    recipe = Recipe.parse(recipe) if isinstance(recipe, str) else recipe
    refuse_names(session, name, version)
    aligned = align_models(session, recipe)
    with Spool() as spool, session.begin_nested():
        made = _merge_all(session, recipe, aligned, seed, spool=spool, progress=progress)
        written = _written(recipe, aligned, seed)
        config = _config(session, aligned, recipe.dtype) if aligned.changes_dtype else None
        derivation = Derivation("merge", written, made, config=config)
        model = derive_model(
            session, aligned.base, derivation, name=name, version=version, compression=compression, progress=progress
        )
        for parent in aligned.models.values():
            if parent.id != aligned.base.id:
                add_lineage(session, model, parent, "merge", written)
        return model


def _merge_all(
    session: Session, recipe: Recipe, aligned: Alignment, seed: int, *, spool: Spool, progress: Progress | None
) -> dict[str, SpooledTensor]:
    tasks = {each.name: _task(each, seed) for each in aligned.tensors}
    total = sum(recipe.method.passes(tasks[each.name]) * each.nbytes for each in aligned.tensors)
    meter = Meter(progress, "merge", total)
    return {
        each.name: _merge(session, recipe, each, tasks[each.name], spool=spool, meter=meter) for each in aligned.tensors
    }


def _task(tensor: AlignedTensor, seed: int) -> Task:
    """With masks that are drawn for each model that is not the base, in the order of the recipe."""
    others = [index for index in range(len(tensor.weights)) if index != tensor.base]
    masks = [
        drawn_mask(seed, model, tensor.name, float(tensor.inputs[index].get("density", 1.0)))
        for model, index in enumerate(others)
    ]
    return Task(prod(tensor.shape), tensor.base, tensor.shared, tensor.inputs, masks)


def _merge(
    session: Session, recipe: Recipe, tensor: AlignedTensor, task: Task, *, spool: Spool, meter: Meter
) -> SpooledTensor:
    merged = spool.tensor(tensor.name, tensor.dtype, tensor.shape)
    for block in recipe.method.merge(task, _blocks(session, tensor, meter)):
        with np.errstate(over="ignore"):
            rounded = block.astype(tensor.dtype.numpy)
        if not np.isfinite(rounded).all():
            raise MergeError(
                f"merged numbers of tensor {tensor.name!r} are too large for {tensor.dtype.name}; say another dtype, "
                f"or smaller weights"
            )
        merged.append(rounded)
    return merged


def _blocks(session: Session, tensor: AlignedTensor, meter: Meter) -> Blocks:
    """The tensor's blocks of all models, as the numbers that are computed with."""
    is_double = "F64" in {tensor.dtype.name, *(each.tensor.dtype for each in tensor.weights)}
    number = np.float64 if is_double else np.float32
    wanted = [wanted_of(each) for each in tensor.weights]
    held: list[Block] = []

    def read() -> Iterator[Block]:
        for block in read_numbers(session, *wanted):
            yield tuple(each.astype(number, copy=False) for each in block)
            meter.add(sum(each.nbytes for each in block))

    def blocks() -> Iterator[Block]:
        if tensor.nbytes > _HELD_NBYTES:
            yield from read()
        elif held:
            yield from held
            meter.add(tensor.nbytes)
        else:
            held.extend(read())
            yield from held

    return blocks


def _written(recipe: Recipe, aligned: Alignment, seed: int) -> dict[str, Any]:
    """What the lineage says to each parent."""
    return {
        "method": recipe.method.id,
        "base": f"{aligned.base.name}@{aligned.base.version}",
        "models": {reference: f"{each.name}@{each.version}" for reference, each in aligned.models.items()},
        "recipe": dict(recipe.document),
        "seed": seed,
        "merged": len(aligned.tensors),
        "kept": len(aligned.kept),
    }


def _config(session: Session, aligned: Alignment, dtype: str | None) -> dict[str, Any]:
    """The base's, with the type that the weights have now where it names one."""
    names = {ours: theirs for theirs, ours in DTYPES.items()}
    config = read_config(session, aligned.base)
    return {key: names[dtype] if dtype and key in _CONFIG_DTYPES else value for key, value in config.items()}

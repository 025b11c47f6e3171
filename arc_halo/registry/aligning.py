"""Which tensors of several models become which of a merged one, and what stands against it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from arc_halo.dtypes import by_name
from arc_halo.errors import MergeError
from arc_halo.merging.recipe import DTYPES
from arc_halo.quantization.description import FIELD
from arc_halo.registry.deriving import read_config, tie_roots
from arc_halo.registry.naming import find_model
from arc_halo.registry.reading import weights_of
from arc_halo.schema import Model, TransformerLayer

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.dtypes import DType
    from arc_halo.merging.abc import Values
    from arc_halo.merging.recipe import Recipe, Slice, Source
    from arc_halo.schema import ModelWeight

_FLOATS: Final = frozenset(DTYPES.values())
_SHOWN: Final = 3
_NUMBER: Final = re.compile(r"(?:^|(?<=\.))[0-9]+(?=\.)")


@dataclass(frozen=True, slots=True)
class AlignedTensor:
    """A tensor of the base, and those of the slice's models that it is merged of.

    Attributes
    ----------
    weights
        One for each source, in their order.
    base
        Which of those is the base's; None where the method has no base.
    shared, inputs
        Values of the parameters, as `arc_halo.merging.Task` has them.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    weights: Sequence[ModelWeight]
    base: int | None
    shared: Values
    inputs: Sequence[Values]

    @property
    def nbytes(self) -> int:
        """What is read of the models in one pass."""
        return sum(each.tensor.nbytes for each in self.weights)


@dataclass(frozen=True, slots=True)
class Alignment:
    """What is merged, and what stays.

    Attributes
    ----------
    models
        By the references of the recipe.
    base
        The one whose layers, config and files the merged model has.
    tensors
        Those to be merged.
    kept
        Names of those that are the base's, because they are the same in all models.
    changes_dtype
        Whether a merged tensor is of another type than the base's.
    """

    models: Mapping[str, Model]
    base: Model
    tensors: Sequence[AlignedTensor]
    kept: Sequence[str]
    changes_dtype: bool


def align_models(session: Session, recipe: Recipe) -> Alignment:
    """Find the tensors that a recipe is about, without reading them.

    Raises
    ------
    ModelNotFound
        There is no such model.
    MergeError
        Models differ in names, shapes or types of tensors, or a parameter is missing; the message names tensors.
    """
    models = _find_models(session, recipe)
    known = {reference: _Weights.of(session, model) for reference, model in models.items()}
    base = known[recipe.base_model]
    _check_layers(recipe, known)
    against = _Against()
    used: dict[str, set[str]] = {reference: set() for reference in models}
    tensors, kept = [], []
    for name, weight in base.by_name.items():
        part, offset, place = _place(recipe, base, weight)
        names = [base.name_in(weight, source.layers, offset) for source in part.sources]
        for source, each in zip(part.sources, names, strict=True):
            used[source.model].add(each)
        if against.is_missing(part.sources, names, known, base.roots[name].name != name):
            continue
        if base.roots[name].name != name:
            against.check_ties(name, base, part.sources, names, known)
            continue
        found = [known[source.model].by_name[each] for source, each in zip(part.sources, names, strict=True)]
        if _is_kept(recipe, weight, found):
            kept.append(name)
        elif against.is_alike(weight, part.sources, found, recipe):
            tensors.append(_aligned(recipe, weight, part, found, place))
    for reference in dict.fromkeys(source.model for part in recipe.slices for source in part.sources):
        against.check_rest(reference, known[reference], used[reference], _layers_used(recipe, reference))
    against.refuse()
    changes = any(each.dtype.name != base.by_name[each.name].tensor.dtype for each in tensors)
    return Alignment(models, models[recipe.base_model], tensors, kept, changes)


def _find_models(session: Session, recipe: Recipe) -> dict[str, Model]:
    models = {reference: find_model(session, reference) for reference in recipe.models}
    first: dict[uuid.UUID, str] = {}
    for reference, model in models.items():
        if model.id in first:
            raise MergeError(
                f"{first[model.id]} and {reference} are the same model, {model.name}@{model.version}; write it one way"
            )
        first[model.id] = reference
        if read_config(session, model).get(FIELD) is not None:
            raise MergeError(f"{reference} is quantised; dequantize it first, for codes have no mean")
    return models


@dataclass(slots=True)
class _Weights:
    """A model's weights, and where they stand in it."""

    by_name: dict[str, ModelWeight]
    roots: dict[str, ModelWeight]
    layer_of: dict[str, int | None]
    layer_count: int
    before_layers: set[str]

    @classmethod
    def of(cls, session: Session, model: Model) -> _Weights:
        weights = weights_of(session, model)
        statement = select(TransformerLayer).where(TransformerLayer.model_id == model.id)
        layers = {each.id: each for each in session.scalars(statement)}
        layer_of, positions = {}, {}
        for weight in weights:
            layer = None if weight.layer_id is None else layers[weight.layer_id]
            layer_of[weight.name] = None if layer is None else layer.layer_index
            positions[weight.name] = 0 if layer is None else layer.position
        in_layers = [positions[name] for name, index in layer_of.items() if index is not None]
        first = min(in_layers, default=0)
        return cls(
            {weight.name: weight for weight in weights},
            tie_roots(weights),
            layer_of,
            max((index + 1 for index in layer_of.values() if index is not None), default=0),
            {name for name, position in positions.items() if layer_of[name] is None and position < first},
        )

    def name_in(self, weight: ModelWeight, layers: range | None, offset: int) -> str:
        """What a weight is called in a model of which other layers are taken."""
        index = self.layer_of[weight.name]
        if layers is None or index is None or layers[offset] == index:
            return weight.name
        number = _NUMBER.search(weight.name)
        if number is None or int(number[0]) != index:
            raise MergeError(f"the layer of tensor {weight.name!r} is not in its name, so it has none in other layers")
        return f"{weight.name[: number.start()]}{layers[offset]}{weight.name[number.end() :]}"


def _check_layers(recipe: Recipe, known: Mapping[str, _Weights]) -> None:
    count = known[recipe.base_model].layer_count
    lengths = [len(part.sources[0].layers) for part in recipe.slices if part.sources[0].layers is not None]
    if lengths and sum(lengths) != count:
        raise MergeError(
            f"the slices make {sum(lengths)} layers, but {recipe.base_model} has {count}; a merged model has the "
            f"architecture of its base"
        )
    for part in recipe.slices:
        for source in part.sources:
            if source.layers is not None and source.layers.stop > known[source.model].layer_count:
                raise MergeError(
                    f"{source.model} has {known[source.model].layer_count} layers, not those of "
                    f"[{source.layers.start}, {source.layers.stop}]"
                )


def _place(recipe: Recipe, base: _Weights, weight: ModelWeight) -> tuple[Slice, int, float]:
    """A weight's slice, its layer in there, and how far that is from the first to the last, as mergekit counts."""
    index = base.layer_of[weight.name]
    if index is None:
        return recipe.slices[0 if weight.name in base.before_layers else -1], 0, 0.0
    for part in recipe.slices:
        layers = part.sources[0].layers
        count = base.layer_count if layers is None else len(layers)
        if index < count:
            return part, index, index / (count - 1) if count > 1 else 1.0
        index -= count
    raise AssertionError(weight.name)  # _check_layers has counted them


def _layers_used(recipe: Recipe, reference: str) -> set[int] | None:
    """Which layers of a model the recipe takes; None for all."""
    taken: set[int] = set()
    for part in recipe.slices:
        for source in part.sources:
            if source.model == reference:
                if source.layers is None:
                    return None
                taken.update(source.layers)
    return taken


def _is_kept(recipe: Recipe, weight: ModelWeight, found: Sequence[ModelWeight]) -> bool:
    """Whether a tensor is the base's: the same in all models, and merging would not change it, or may not."""
    if any(each.tensor_id != weight.tensor_id for each in found):
        return False
    if weight.category == "buffer" or not by_name(weight.tensor.dtype).is_float:
        return True
    return recipe.method.keeps_equal and recipe.dtype in (None, weight.tensor.dtype)


def _aligned(
    recipe: Recipe, weight: ModelWeight, part: Slice, found: Sequence[ModelWeight], place: float
) -> AlignedTensor:
    base = None
    if recipe.method.needs_base:
        base = [source.model for source in part.sources].index(recipe.base_model)
    return AlignedTensor(
        name=weight.name,
        dtype=by_name(recipe.dtype or weight.tensor.dtype),
        shape=tuple(weight.tensor.shape),
        weights=found,
        base=base,
        shared=recipe.shared(part, weight.name, place),
        inputs=[
            recipe.of_source(part, source, each.name, place) for source, each in zip(part.sources, found, strict=True)
        ],
    )


@dataclass(slots=True)
class _Against:
    """What stands against a merge, collected so that one message says all of it."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, tensor: str) -> None:
        self.found.setdefault(what, []).append(tensor)

    def is_missing(
        self, sources: Sequence[Source], names: Sequence[str], known: Mapping[str, _Weights], is_tied: bool
    ) -> bool:
        missing = [(s.model, n) for s, n in zip(sources, names, strict=True) if n not in known[s.model].by_name]
        for model, name in missing:
            if not is_tied:  # an output's head that is stored in one model and left out in another
                self.add(f"are not in {model}", name)
        return bool(missing)

    def check_ties(
        self,
        name: str,
        base: _Weights,
        sources: Sequence[Source],
        names: Sequence[str],
        known: Mapping[str, _Weights],
    ) -> None:
        """What is tied in the base must be, or be the same, in the others."""
        root = base.roots[name]
        for source, each in zip(sources, names, strict=True):
            weights = known[source.model]
            tied = weights.by_name.get(root.name)
            if tied is None or tied.tensor_id != weights.by_name[each].tensor_id:
                self.add(f"of {source.model} are tensors of their own that the base ties to others", each)

    def is_alike(
        self,
        weight: ModelWeight,
        sources: Sequence[Source],
        found: Sequence[ModelWeight],
        recipe: Recipe,
    ) -> bool:
        before = sum(map(len, self.found.values()))
        for source, each in zip(sources, found, strict=True):
            tensor = each.tensor
            if list(tensor.shape) != list(weight.tensor.shape):
                shapes = f"{list(tensor.shape)}, not {list(weight.tensor.shape)}"
                self.add(f"of {source.model} have other shapes than the base's", f"{each.name} {shapes}")
            elif tensor.dtype not in _FLOATS:
                if by_name(tensor.dtype).is_float:
                    self.add(f"of {source.model} are of types that cannot be merged", f"{each.name} {tensor.dtype}")
                elif each.tensor_id != weight.tensor_id:
                    self.add(f"of {source.model} are no floats and differ from the base's", each.name)
            elif recipe.dtype is None and tensor.dtype != weight.tensor.dtype:
                types = f"{tensor.dtype}, not {weight.tensor.dtype}"
                self.add(f"of {source.model} have other types than the base's (say a dtype)", f"{each.name} {types}")
            elif tensor.nan_count or tensor.inf_count:
                self.add(f"of {source.model} hold NaN or infinity", each.name)
        return sum(map(len, self.found.values())) == before

    def check_rest(self, reference: str, weights: _Weights, used: set[str], layers: set[int] | None) -> None:
        for name, weight in weights.by_name.items():
            index = weights.layer_of[name]
            is_taken = layers is None or index is None or index in layers
            if name not in used and is_taken and weights.roots[name].name == weight.name:
                self.add(f"of {reference} are not in the base", name)

    def refuse(self) -> None:
        """Raise `MergeError` if there is anything."""
        if self.found:
            told = []
            for what, names in self.found.items():
                more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
                told.append(f"tensors {what}: {', '.join(names[:_SHOWN])}{more}")
            raise MergeError("; ".join(told))

"""Recipes of merges: mergekit's YAML, read strictly."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from arc_halo.errors import MergeError, RecipeError
from arc_halo.merging import METHODS, Method, method
from arc_halo.merging.document import compose
from arc_halo.merging.settings import read_settings, resolve

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from arc_halo.merging.abc import Values
    from arc_halo.merging.document import Entry
    from arc_halo.merging.settings import Settings

DTYPES: Final = MappingProxyType({"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"})
"""mergekit's names of types, and ours."""
_KEYS: Final = (
    "merge_method",
    "base_model",
    "models",
    "slices",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
)
# Known to mergekit, so that somebody may rely on it; said here why it is not done.
_NOT_HERE: Final = MappingProxyType(
    {
        "modules": "models of several modules are not merged here; merge each by itself",
        "tokenizer": "vocabularies are not merged here: the base's tokenizer stays; leave it out",
        "chat_template": "the base's files stay as they are; leave it out",
    }
)


@dataclass(frozen=True, slots=True)
class Source:
    """A model of a slice.

    Attributes
    ----------
    model
        Its reference in the database: ``name``, ``name@version`` or ``name@alias``.
    layers
        Which of its layers; None for all.
    """

    model: str
    layers: range | None = None
    parameters: Settings = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers that are merged of the same number of layers of each source."""

    sources: Sequence[Source]
    parameters: Settings = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is merged, and how.

    Attributes
    ----------
    base_model
        The model whose architecture, config and tokenizer the merged one has, and that task vectors begin at.
    slices
        One without layers where the recipe lists ``models``; the base is among the sources of each.
    dtype
        Of the merged tensors, as the database spells it; None for what the base's have.
    document
        What was written, as JSON holds it.
    """

    method: Method
    base_model: str
    slices: Sequence[Slice]
    parameters: Settings
    dtype: str | None
    document: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str, where: str = "recipe") -> Recipe:
        """Read a recipe.

        Parameters
        ----------
        where
            What messages call it.

        Raises
        ------
        RecipeError
            It says something that is not known, or not enough.
        """
        root = compose(text, where)
        keys = root.mapping((*_KEYS, *_NOT_HERE))
        for key, why in _NOT_HERE.items():
            if key in keys:
                keys[key].refuse(why)
        chosen = _method(root, keys)
        _check_tokenizer(keys.get("tokenizer_source"))
        base = _text(keys.get("base_model"))
        slices = _slices(root, keys, chosen, base)
        if base is None:
            if chosen.needs_base:
                root.refuse(f"{chosen.id} needs a base_model: one of those in the database")
            base = slices[0].sources[0].model
        return cls(
            method=chosen,
            base_model=base,
            slices=slices,
            parameters=read_settings(keys.get("parameters"), chosen, of_a_model=False),
            dtype=_dtype(keys.get("out_dtype")) or _dtype(keys.get("dtype")),
            document=root.plain(),
        )

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe from a file.

        Raises
        ------
        RecipeError
            It is no text, or as in `parse`.
        """
        try:
            return cls.parse(path.read_text(encoding="utf-8"), path.name)
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path.name} is no UTF-8 text: {error.reason} at byte {error.start}") from error

    @property
    def models(self) -> list[str]:
        """References of all models, each once, in the order in which they are named."""
        named = (source.model for each in self.slices for source in each.sources)
        return list(dict.fromkeys([*named, self.base_model]))

    def shared(self, part: Slice, tensor: str, place: float) -> Values:
        """Values of the parameters that all models of a slice have in common.

        Raises
        ------
        MergeError
            One is missing.
        """
        return {
            each.name: resolve(each, tensor, place, (part.parameters, self.parameters), "")
            for each in self.method.parameters
            if each.scope == "shared"
        }

    def of_source(self, part: Slice, source: Source, tensor: str, place: float) -> Values:
        """Values of the parameters that each model of a slice has for itself; the base has none, unless it is needed.

        Parameters
        ----------
        tensor
            As the source calls it.
        place
            Of its layer in the slice: from 0, the first, to 1, the last.

        Raises
        ------
        MergeError
            One is missing.
        """
        if self.method.needs_base and source.model == self.base_model:
            return {}
        settings = (source.parameters, part.parameters, self.parameters)
        return {
            each.name: resolve(each, tensor, place, settings, f" of {source.model}")
            for each in self.method.parameters
            if each.scope == "model"
        }


def _method(root: Entry, keys: Mapping[str, Entry]) -> Method:
    if "merge_method" not in keys:
        root.refuse(f"has no merge_method; there are {', '.join(METHODS)}")
    try:
        return method(keys["merge_method"].text())
    except RecipeError:
        raise
    except MergeError as error:
        keys["merge_method"].refuse(str(error))


def _slices(root: Entry, keys: Mapping[str, Entry], chosen: Method, base: str | None) -> Sequence[Slice]:
    if ("models" in keys) == ("slices" in keys):
        root.refuse("needs either models or slices")
    if "models" in keys:
        sources = [_source(each, chosen, ("model", "parameters")) for each in keys["models"].items()]
        if base is not None and base not in [each.model for each in sources]:
            sources.append(Source(base))  # as mergekit does, where models are listed
        parts = [(keys["models"], Slice(sources))]
    else:
        parts = [(each, _slice(each, chosen)) for each in keys["slices"].items()]
    for entry, part in parts:
        _check_sources(entry, part, chosen, base)
    return tuple(part for _, part in parts)


def _slice(entry: Entry, chosen: Method) -> Slice:
    fields = entry.mapping(("sources", "parameters"))
    if "sources" not in fields:
        entry.refuse("has no sources")
    sources = [_source(each, chosen, ("model", "layer_range", "parameters")) for each in fields["sources"].items()]
    for each, source in zip(fields["sources"].items(), sources, strict=True):
        if source.layers is None:
            each.refuse("has no layer_range; write [0, 12] for the first twelve layers")
    if len({len(each.layers or ()) for each in sources}) > 1:
        fields["sources"].refuse("layer ranges of one slice must be equally long")
    return Slice(sources, read_settings(fields.get("parameters"), chosen, of_a_model=False))


def _source(entry: Entry, chosen: Method, known: Iterable[str]) -> Source:
    fields = entry.mapping(tuple(known))
    if "model" not in fields:
        entry.refuse("has no model")
    reference = fields["model"].text("a model")
    own = read_settings(fields.get("parameters"), chosen, of_a_model=True)
    return Source(reference, _layers(fields.get("layer_range")), own)


def _layers(entry: Entry | None) -> range | None:
    if entry is None:
        return None
    ends = [each.whole() for each in entry.items()]
    if len(ends) != len(("first", "stop")) or ends[0] >= ends[1]:
        entry.refuse("must be the first layer and the one behind the last, as [0, 12]")
    return range(*ends)


def _check_sources(entry: Entry, part: Slice, chosen: Method, base: str | None) -> None:
    names = [each.model for each in part.sources]
    if len(set(names)) != len(names):
        entry.refuse("a model is named twice")
    if chosen.needs_base and base is not None and base not in names:
        entry.refuse(f"the base_model {base} must be one of the sources")
    if chosen.inputs is not None and len(names) != chosen.inputs:
        entry.refuse(f"{chosen.id} merges {chosen.inputs} models, the base among them, not {len(names)}")
    if chosen.needs_base and len(names) == 1:
        entry.refuse("there is no model beside the base")


def _dtype(entry: Entry | None) -> str | None:
    if (name := _text(entry)) is None:
        return None
    if name not in DTYPES:
        assert entry is not None
        entry.refuse(f"{name!r} is no type of weights; there are {', '.join(DTYPES)}")
    return DTYPES[name]


def _check_tokenizer(entry: Entry | None) -> None:
    if (name := _text(entry)) not in (None, "base"):
        assert entry is not None
        entry.refuse(f"{name!r} is not done here: the base's tokenizer stays; write base, or leave it out")


def _text(entry: Entry | None) -> str | None:
    return None if entry is None or entry.is_null else entry.text()

"""Recognise a model's family by the names of its tensors, and describe it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from arc_halo.errors import ModelFolderError
from arc_halo.formats.architectures.bert import BERT
from arc_halo.formats.architectures.codes import scale_of
from arc_halo.formats.architectures.description import Architecture, EmbeddingSpec
from arc_halo.formats.architectures.distilbert import DISTILBERT
from arc_halo.formats.architectures.ggml import GGML
from arc_halo.formats.architectures.gpt2 import GPT2
from arc_halo.formats.architectures.heads import cut_heads, read_counts
from arc_halo.formats.architectures.layer_config import layer_config
from arc_halo.formats.architectures.llama import LLAMA
from arc_halo.formats.architectures.mixture import MIXTURE
from arc_halo.formats.architectures.tree import LayerTree

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from arc_halo.formats.architectures.abc import Family, Match
    from arc_halo.formats.architectures.description import HeadSpec, Shaped
    from arc_halo.formats.architectures.tree import Layer

# Where two recognise the same number of tensors, the first is taken: a dense Llama is no mixture.
FAMILIES = (BERT, DISTILBERT, GPT2, LLAMA, MIXTURE, GGML)
UNKNOWN = "unknown"


class _Recognised(NamedTuple):
    family: Family
    prefix: str
    matches: dict[str, Match]


def describe(config: Mapping[str, Any], tensors: Mapping[str, Shaped]) -> Architecture:
    """Describe a model from its config.json and the names, element types and shapes of its tensors.

    Never fails on what a config or a file says: parts that are not recognised become layers of type ``other``, and
    what does not fit together is said in ``notes``.

    Parameters
    ----------
    config
        The parsed config.json; empty when there is none (then there are no heads: only a config counts them).
    tensors
        Every stored tensor by name, in the order of the files.
    """
    model_type = config.get("model_type")
    config = _language_config(config)
    recognised = _recognise(tensors)
    tree, embeddings = _grow(tensors, recognised.matches if recognised else {})
    for layer in tree.layers.values():
        layer.config.update(layer_config(layer, config))
    _mark_codes(tensors, tree)
    heads: list[HeadSpec] = []
    notes: list[str] = []
    if recognised:
        heads, notes = _heads(recognised.family, config, tree)
        notes += _count_blocks(recognised.family, config, tree)
        for name, source in _ties(recognised, config, tensors):
            tree.weights[name] = replace(tree.weights[name], tied_to=source)
    return Architecture(
        model_type=model_type if isinstance(model_type, str) else "",
        family=recognised.family.name if recognised else UNKNOWN,
        layers=tuple(tree.specs()),
        weights=tuple(tree.weights[name] for name in tensors),
        heads=tuple(heads),
        embeddings=tuple(embeddings),
        unrecognised=tree.unrecognised,
        notes=tuple(notes),
    )


def _language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model, which stands inside that of a model with several modalities."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _recognise(tensors: Mapping[str, Shaped]) -> _Recognised | None:
    """Find the family that knows most of the names, if it knows at least half of those with its prefix."""
    best: _Recognised | None = None
    for family in FAMILIES:
        prefix = family.prefix(tensors)
        if prefix is None:
            continue
        found = {name: match for name in tensors if (match := family.find(name, prefix))}
        prefixed = sum(name.startswith(prefix) for name in tensors)
        if 2 * len(found) >= prefixed and (best is None or len(found) > len(best.matches)):
            best = _Recognised(family, prefix, found)
    return best


def _grow(tensors: Mapping[str, Shaped], matches: Mapping[str, Match]) -> tuple[LayerTree, list[EmbeddingSpec]]:
    tree, embeddings = LayerTree(), []
    for name, match in matches.items():
        tree.hang(tensors[name], match)
        kind = match.place.modules[-1].embedding
        is_matrix = len(tensors[name].shape) == 2 and tensors[name].dtype.is_float  # noqa: PLR2004  # rows, columns
        if kind and match.parameter == "weight" and is_matrix:
            embeddings.append(EmbeddingSpec(name, kind))
    for name, tensor in tensors.items():  # after all others: they lie below the nearest layer that is known
        if name not in matches:
            tree.hang_other(tensor)
    return tree, embeddings


def _mark_codes(tensors: Mapping[str, Shaped], tree: LayerTree) -> None:
    """Codes cannot be trained, and their scales are no parameters, whatever family they are of."""
    for name, tensor in tensors.items():
        scale = scale_of(name, tensor.dtype, tensors)
        if scale is not None:
            tree.weights[name] = replace(tree.weights[name], is_trainable=False)
            tree.weights[scale] = replace(tree.weights[scale], category="buffer", is_trainable=False)


def _heads(family: Family, config: Mapping[str, Any], tree: LayerTree) -> tuple[list[HeadSpec], list[str]]:
    heads: list[HeadSpec] = []
    failures: list[str] = []
    attentions = [layer for layer in tree.layers.values() if layer.module and layer.module.projections]
    for layer in attentions:
        try:
            cut = _cut(family, config, layer)
        except ModelFolderError as reason:
            failures.append(str(reason))
            continue
        heads += cut
        groups = cut[-1].kv_group + 1
        layer.config.update({"heads": len(cut), "key_value_heads": groups, "head_dim": cut[0].head_dim})
    if not failures:
        return heads, []
    return heads, [f"{len(failures)} of {len(attentions)} attention layers have no heads: {failures[0]}"]


def _cut(family: Family, config: Mapping[str, Any], layer: Layer) -> list[HeadSpec]:
    assert layer.module is not None  # only declared layers have projections
    counts = read_counts(family, config)
    for projections in layer.module.projections:
        if layer.weights.keys() >= {projections.query, projections.key, projections.value, projections.output}:
            return cut_heads(layer.key, counts, projections, layer.weights, transposed=layer.module.transposed)
    raise ModelFolderError(f"{layer.key} does not have all of query, key, value and output")


def _count_blocks(family: Family, config: Mapping[str, Any], tree: LayerTree) -> list[str]:
    declared = config.get(family.blocks)
    found = sum(layer.layer_type == "block" for layer in tree.layers.values())
    if declared is None or declared == found:
        return []
    return [f"config has {family.blocks} {declared!r:.20}, the tensors make {found} blocks"]


def _ties(
    recognised: _Recognised, config: Mapping[str, Any], tensors: Mapping[str, Shaped]
) -> Iterator[tuple[str, str]]:
    """Pairs of stored tensors that the config ties; equal bytes alone do not make a tie."""
    family, prefix, matches = recognised
    model_type = config.get("model_type")
    by_default = family.tied_model_types is None or (
        isinstance(model_type, str) and model_type in family.tied_model_types
    )
    if config.get("tie_word_embeddings", by_default) is not True:
        return
    for tied, untied in family.ties:
        source = untied.replace("~", prefix)
        if {tied, source} <= matches.keys() and tensors[tied].shape == tensors[source].shape:
            yield tied, source

"""Whole models: into the database and out of it, found by name, compared, searched.

Reference
    ``name``, ``name@version`` or ``name@alias``; also a `Model` or its id. A name alone is the newest version.
Import
    A folder or file becomes a model; `create_model` does the same from arrays.
Publication
    The one moment at which a model exists: its rows, written after its tensors, in the caller's transaction.
Export
    The files of a model, byte for byte those that were imported.
Lineage
    Which model was made from which, and how; a family is all that lineage or a name ties together.
Derivation
    A new version of a model in which some tensors are others: quantised, dequantised or pruned.
Merge
    A model made of several, as a recipe says; the base's in everything but its numbers.
Match
    A vector that a search found.
"""

from arc_halo.registry.cards import export_repository
from arc_halo.registry.comparing import (
    Comparison,
    Storage,
    TensorDifference,
    compare_models,
    measure_storage,
)
from arc_halo.registry.deleting import ModelRuns, count_runs, delete_model
from arc_halo.registry.dequantizing import dequantize_model, dequantize_tensor
from arc_halo.registry.differing import Distance, TensorDistance
from arc_halo.registry.embeddings import Match, Matches, add_embeddings, find_similar_tokens, search_embeddings
from arc_halo.registry.exporting import export_model
from arc_halo.registry.heatmap import HeatMap
from arc_halo.registry.importing import create_model, import_model
from arc_halo.registry.lineage import add_lineage, ancestors_of, children_of, family_of, parents_of
from arc_halo.registry.loading import load_model
from arc_halo.registry.merging import merge_models
from arc_halo.registry.naming import find_model, set_alias
from arc_halo.registry.origins import origin_of
from arc_halo.registry.pruning import prune_model
from arc_halo.registry.quantizing import quantize_model
from arc_halo.registry.reading import check_model, iter_tensors, read_tensor, set_trainable
from arc_halo.registry.repacking import repack_family, repack_model
from arc_halo.registry.repairing import repair

__all__ = [
    "Comparison",
    "Distance",
    "HeatMap",
    "Match",
    "Matches",
    "ModelRuns",
    "Storage",
    "TensorDifference",
    "TensorDistance",
    "add_embeddings",
    "add_lineage",
    "ancestors_of",
    "check_model",
    "children_of",
    "compare_models",
    "count_runs",
    "create_model",
    "delete_model",
    "dequantize_model",
    "dequantize_tensor",
    "export_model",
    "export_repository",
    "family_of",
    "find_model",
    "find_similar_tokens",
    "import_model",
    "iter_tensors",
    "load_model",
    "measure_storage",
    "merge_models",
    "origin_of",
    "parents_of",
    "prune_model",
    "quantize_model",
    "read_tensor",
    "repack_family",
    "repack_model",
    "repair",
    "search_embeddings",
    "set_alias",
    "set_trainable",
]

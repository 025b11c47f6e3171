"""Embeddings of prompts: checked, and scaled to unit length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from arc_halo.errors import CacheError
from arc_halo.inference.responses.keys import checked_text
from arc_halo.registry.embeddings import MAX_DIMENSION

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class PromptVector:
    """A vector as pgvector spells it, and the name of what made it."""

    embedder: str
    dimension: int
    spelled: str


def prompt_vector(embedding: np.ndarray | Sequence[float], embedder: str | None) -> PromptVector:
    """An embedding that has a direction, scaled to unit length so that no product of float32 overflows.

    Parameters
    ----------
    embedding
        Shape (dimension,), finite, not all zeros, dimension at most 16,000.

    Raises
    ------
    CacheError
        It is no such vector, or nobody says what made it.
    """
    if not embedder:
        raise CacheError("an embedding is compared with those of the same embedder only: name it, with its version")
    try:
        vector = np.asarray(embedding, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CacheError(f"this is no embedding: {error}; give numbers") from error
    if vector.ndim != 1 or not 0 < vector.size <= MAX_DIMENSION:
        raise CacheError(f"an embedding has one axis of 1 to {MAX_DIMENSION:,} elements, not shape {vector.shape}")
    largest = np.abs(vector).max()
    if not 0 < largest < np.inf:
        raise CacheError("an embedding of zeros, NaN or infinities points nowhere")
    scaled = vector / largest
    unit = (scaled / np.linalg.norm(scaled)).astype(np.float32)
    spelled = "[" + ",".join(map(repr, unit.tolist())) + "]"
    return PromptVector(checked_text(embedder, "the embedder's name"), vector.size, spelled)

"""Attention as tools that show it take it: arrays of numpy, in the shapes of BertViz and CircuitsVis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def bertviz_layout(matrices: Mapping[str, np.ndarray] | Iterable[np.ndarray]) -> list[np.ndarray]:
    """Layers as ``head_view`` and ``model_view`` of BertViz 1.4 take them, once each is made a tensor.

    Parameters
    ----------
    matrices
        Of each layer ``[heads, queries, keys]``, by its path or in the order of layers, as `load_attention` gives them.

    Returns
    -------
    list of ndarray
        Of each layer ``[1, heads, queries, keys]`` in float32, over the same memory where that is float32.

    Examples
    --------
    >>> head_view([torch.from_numpy(each) for each in bertviz_layout(matrices)], tokens)  # doctest: +SKIP
    """
    layers = matrices.values() if hasattr(matrices, "values") else matrices
    return [np.asarray(each, np.float32)[np.newaxis] for each in layers]


def circuitsvis_layout(matrices: np.ndarray) -> np.ndarray:
    """One layer as ``attention_heads`` and ``attention_patterns`` of CircuitsVis 1.43 take it.

    Parameters
    ----------
    matrices
        ``[heads, queries, keys]``.

    Returns
    -------
    ndarray
        ``[heads, destination tokens, source tokens]`` in float32: queries are destinations, keys are sources.

    Examples
    --------
    >>> attention_heads(circuitsvis_layout(matrices[path]), tokens)  # doctest: +SKIP
    """
    return np.asarray(matrices, np.float32)

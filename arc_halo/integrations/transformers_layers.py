"""The keys and values that a cache of transformers holds, as arrays and back; the extra ``transformers``."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from arc_halo.errors import CacheError, UnknownCacheLayer
from arc_halo.inference.kv import KVLayout
from arc_halo.integrations.torch import from_numpy, to_numpy
from arc_halo.integrations.transformers_limits import check_direction, check_later_tokens, check_positions

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from arc_halo.inference.kv.types import Layers


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache of a model.

    Raises
    ------
    UnknownCacheLayer
        A layer of it keeps something else than the keys and values of all tokens.
    CacheError
        Its keys depend on tokens that come after them.
    """
    check_positions(model)
    check_direction(model)
    cache = DynamicCache(config=model.config)
    _check_kinds(cache)
    return cache


def fill(cache: DynamicCache, layers: Layers, device: torch.device) -> None:
    """Put keys and values, [kv_heads, tokens, dim] of each layer, into an empty cache, without another copy."""
    for layer, (keys, values) in zip(cache.layers, layers, strict=True):
        key_states, value_states = (from_numpy(each).unsqueeze(0).to(device) for each in (keys, values))
        layer.lazy_initialization(key_states, value_states)
        layer.keys, layer.values = key_states, value_states


def cache_argument(model: PreTrainedModel) -> str:
    """The name of the argument that takes a cache; it was ``past_key_values`` before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def layout_of(model: PreTrainedModel) -> KVLayout:
    """The layout of a model's keys and values, from those of one token: configs spell it in too many ways."""

    def computed(tokens: torch.Tensor) -> DynamicCache:
        cache = new_cache(model)
        with torch.inference_mode():
            model(input_ids=tokens, **{cache_argument(model): cache}, use_cache=True)
        return cache

    cache = computed(torch.zeros((1, 1), dtype=torch.long, device=model.device))
    if cache.get_seq_length() != 1:
        raise CacheError(
            f"of one token the model puts {cache.get_seq_length()} into a cache: it has virtual tokens or keys of its "
            "own, which no prefix tells of; use this model without a cache"
        )
    check_later_tokens(model, lambda tokens: [layer.keys for layer in computed(tokens).layers])
    return KVLayout.of(held_layers(cache, None, 1))


def _check_kinds(cache: DynamicCache) -> None:
    other = sorted({type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer})
    if other or not cache.layers:
        raise UnknownCacheLayer(
            f"layers of kind {', '.join(other) or 'unknown'} cannot be stored: only plain keys and values of all "
            "tokens are those of a prefix; use this model without a cache"
        )


def held_layers(cache: DynamicCache, layout: KVLayout | None, token_count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The keys and values of the first tokens, [kv_heads, tokens, dim] of each layer."""
    _check_kinds(cache)
    if layout is not None and len(cache.layers) != len(layout.layers):
        raise CacheError(f"a cache of {len(cache.layers)} layers is not one of {len(layout.layers)}")
    found = []
    for layer in cache.layers:
        if layer.keys is None or layer.values is None or layer.get_seq_length() < token_count:
            raise CacheError(f"the cache holds {layer.get_seq_length()} tokens where {token_count} are to be stored")
        if layer.keys.shape[0] != 1:
            raise CacheError(f"the cache holds {layer.keys.shape[0]} rows; prefixes are stored one by one")
        found.append((to_numpy(layer.keys[0, :, :token_count]), to_numpy(layer.values[0, :, :token_count])))
    return found

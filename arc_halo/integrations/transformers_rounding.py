"""What rounding keys and values to eight bits does to a model's answers; the extra ``transformers``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from arc_halo.errors import CacheError
from arc_halo.inference.kv import KVLayout
from arc_halo.inference.kv.payloads import decode, encode
from arc_halo.integrations.torch import to_numpy
from arc_halo.integrations.transformers_cache import DEFAULT_BLOCK_TOKENS
from arc_halo.integrations.transformers_layers import cache_argument, fill, new_cache

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

_ROW: Final = 2


@dataclass(frozen=True, slots=True)
class Divergence:
    """How the distributions of next tokens differ after a rounded prefix.

    Attributes
    ----------
    mean_nats, max_nats
        Kullback-Leibler divergence of the rounded from the exact distribution, over the tokens after the prefix.
    top_agreement
        Share of these tokens at which both have the same most probable next one.
    """

    mean_nats: float
    max_nats: float
    top_agreement: float


def rounding_divergence(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    *,
    prefix_token_count: int,
    block_token_count: int = DEFAULT_BLOCK_TOKENS,
) -> Divergence:
    """Measure what ``codec="int8"`` does to a model on a text.

    Parameters
    ----------
    input_ids
        Of shape [1, tokens]: the prefix, whose keys and values are rounded, and tokens whose next ones are compared.

    Raises
    ------
    CacheError
        There are no tokens after the prefix, or none in it.
    """
    if input_ids.ndim != _ROW or not 0 < prefix_token_count < input_ids.shape[1]:
        raise CacheError(f"a prefix of {prefix_token_count} of {input_ids.shape[-1]} tokens leaves nothing to compare")
    prefix, rest = input_ids[:, :prefix_token_count], input_ids[:, prefix_token_count:]
    name = cache_argument(model)
    exact = new_cache(model)
    with torch.inference_mode():
        model(input_ids=prefix, **{name: exact})
        rounded = _rounded(model, exact, block_token_count)
        theirs = torch.log_softmax(model(input_ids=rest, **{name: exact}).logits[0].double(), -1)
        ours = torch.log_softmax(model(input_ids=rest, **{name: rounded}).logits[0].double(), -1)
    nats = (theirs.exp() * (theirs - ours)).sum(-1).clamp(min=0)
    agreement = (theirs.argmax(-1) == ours.argmax(-1)).double().mean()
    return Divergence(nats.mean().item(), nats.max().item(), agreement.item())


def _rounded(model: PreTrainedModel, exact: DynamicCache, block_token_count: int) -> DynamicCache:
    """What the database would give back of a cache that was stored by eight bits."""
    layers = [(to_numpy(layer.keys[0]), to_numpy(layer.values[0])) for layer in exact.layers]
    element = KVLayout.of(layers).element

    def through(array: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, array.shape[1], block_token_count):
            block = array[:, start : start + block_token_count]
            codec_id, payload, _ = encode(block, element, "int8")
            heads, tokens, dim = block.shape
            parts.append(decode(bytes(payload), element, codec_id, (heads, tokens, dim))[0])
        return np.concatenate(parts, axis=1)

    cache = new_cache(model)
    fill(cache, [(through(keys), through(values)) for keys, values in layers], model.device)
    return cache

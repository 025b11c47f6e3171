"""Keys and values to store, small and made up."""

from __future__ import annotations

import numpy as np

from arc_halo.inference.kv import KVLayout, LayerShape
from arc_halo.inference.namespaces import Namespace
from tests.schema.rows import digest

LAYOUT = KVLayout((LayerShape(2, 4, 4), LayerShape(2, 4, 3)), "F32")
BLOCK = 4


def make_namespace(**changes) -> Namespace:
    """One of blocks of four tokens, of weights that no model here has."""
    return Namespace(
        **{
            "kind": "kv",
            "weights_digest": digest("weights"),
            "config_digest": digest("config"),
            "dtype": LAYOUT.dtype,
            "layout": str(LAYOUT),
            "block_token_count": BLOCK,
            **changes,
        }
    )


def make_layers(token_ids, *, layout=LAYOUT, seed=0):
    """What a model would compute: of each token all before it decide."""
    layers = layout.empty(len(token_ids))
    for index, (keys, values) in enumerate(layers):
        for position in range(len(token_ids)):
            source = np.random.default_rng([seed, index, *(int(token) for token in token_ids[: position + 1])])
            keys[:, position] = source.standard_normal(keys[:, 0].shape)
            values[:, position] = source.standard_normal(values[:, 0].shape)
    return layers


def same(first, second, token_count=None) -> bool:
    """Whether the first tokens of both have the same bytes."""
    return all(
        ours[:, :token_count].tobytes() == theirs[:, :token_count].tobytes()
        for pair, other in zip(first, second, strict=True)
        for ours, theirs in zip(pair, other, strict=True)
    )

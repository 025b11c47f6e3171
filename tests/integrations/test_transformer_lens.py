"""TransformerLens takes what is given it."""

from __future__ import annotations

import torch
from transformer_lens import ActivationCache

from arc_halo.integrations.torch_activations import to_transformer_lens


def test_its_cache_finds_the_stream_by_its_short_names():
    given = {f"transformer.h.{number}": torch.full((1, 2, 4), float(number)) for number in range(3)}
    found = to_transformer_lens(given | {"transformer.wte": torch.zeros(1, 2, 4)})
    assert isinstance(found, ActivationCache)
    assert found["resid_post", 2].mean() == 2
    assert found["resid_pre", 2].mean() == 1
    assert found.has_embed

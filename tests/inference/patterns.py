"""Attention made by hand."""

from __future__ import annotations

import numpy as np

from arc_halo import create_model
from arc_halo.schema import InferenceSession
from tests.fixtures.models import gpt2
from tests.schema.rows import add


def attention(heads, tokens, *, causal=True, seed=0, sharpness=1.0):
    """Softmaxes of random numbers, ``[heads, tokens, tokens]`` in float32."""
    scores = sharpness * np.random.default_rng(seed).standard_normal((heads, tokens, tokens), np.float32)
    if causal:
        scores[:, ~np.tri(tokens, dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    return (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)


def looking_at(places):
    """A head whose queries each look at one key."""
    return np.eye(len(places), dtype=np.float32)[places]


def add_served(session, **sizes):
    """An inference session of a small GPT-2: two blocks of four heads, unless said otherwise."""
    small = gpt2(**sizes)
    model = create_model(session, "gpt", small.config, small.arrays())
    return add(session, InferenceSession(model=model))

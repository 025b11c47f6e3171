"""BertViz and CircuitsVis take the layouts that are made for them."""

from __future__ import annotations

import json
import re

import pytest
import torch
from bertviz import head_view
from bertviz.util import format_attention, num_heads, num_layers
from circuitsvis.attention import attention_heads
from circuitsvis.utils.convert_props import convert_props

from arc_halo.inference.attention import bertviz_layout, circuitsvis_layout
from tests.inference.patterns import attention

TOKENS = ["the", "king", "and", "queen"]
MATRICES = {"h.0.attn": attention(3, 4), "h.1.attn": attention(3, 4, seed=1)}

pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries warn of is not ours


def test_bertviz_shows_every_layer_and_head():
    layers = [torch.from_numpy(each) for each in bertviz_layout(MATRICES)]
    assert (num_layers(layers), num_heads(layers)) == (2, 3)
    assert torch.equal(format_attention(layers), torch.stack([torch.from_numpy(each) for each in MATRICES.values()]))
    html = head_view(layers, TOKENS, html_action="return").data
    assert all(token in html for token in TOKENS)


def test_circuitsvis_shows_every_head(monkeypatch):
    monkeypatch.setattr("circuitsvis.utils.render.internet_on", lambda: False)
    layer = circuitsvis_layout(MATRICES["h.0.attn"])
    html = str(attention_heads(layer, TOKENS))
    shown = json.loads(re.search(r'"attention":\s*(\[\[\[.*?\]\]\])', html)[1])
    assert torch.allclose(torch.tensor(shown), torch.from_numpy(layer))
    assert convert_props({"attention": layer}) is not None

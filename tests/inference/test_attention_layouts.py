"""Shapes that other tools take."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from arc_halo.inference.attention import bertviz_layout, circuitsvis_layout
from tests.inference.patterns import attention


def test_layers_are_batches_of_one():
    matrices = {"a": attention(3, 5), "b": attention(2, 5).astype(ml_dtypes.bfloat16)}
    for layers in (bertviz_layout(matrices), bertviz_layout(iter(matrices.values()))):
        assert [(each.shape, each.dtype) for each in layers] == [((1, 3, 5, 5), np.float32), ((1, 2, 5, 5), np.float32)]
    assert bertviz_layout(matrices)[0].base is matrices["a"]  # no copy


def test_heads_are_destination_by_source():
    matrices = attention(3, 5).astype(np.float16)
    layout = circuitsvis_layout(matrices)
    assert (layout.shape, layout.dtype) == ((3, 5, 5), np.float32)
    assert not layout[:, 0, 1:].any()  # the first destination sees only itself

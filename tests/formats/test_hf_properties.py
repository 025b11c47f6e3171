from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from arc_halo.errors import ModelFolderError
from arc_halo.formats.hf import open_model

SHARDS = {f"model-0000{number}-of-00003.safetensors": [f"{number}.a", f"{number}.b"] for number in (1, 2, 3)}
WEIGHT_MAP = {tensor: shard for shard, tensors in SHARDS.items() for tensor in tensors}
NAMES = st.sampled_from([*SHARDS, "extra.safetensors", "model.safetensors", "../x.safetensors", ""]) | st.text(
    max_size=6
)
VALUES = st.none() | st.integers() | NAMES | st.lists(NAMES, max_size=2)
MAPS = st.dictionaries(st.sampled_from([*WEIGHT_MAP]) | st.text(max_size=4), NAMES | VALUES, max_size=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    for shard, tensors in SHARDS.items():
        save_file({tensor: np.zeros(2, np.float32) for tensor in tensors}, folder / shard)
    save_file({"x": np.zeros(2, np.float32)}, folder / "extra.safetensors")
    return folder


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    removed=st.sets(st.sampled_from([*WEIGHT_MAP])),
    moved=MAPS,
    outer=st.sampled_from(["weight_map", "weights"]),
    more=st.dictionaries(st.text(max_size=5), VALUES, max_size=2),
)
def test_an_index_opens_only_if_it_says_what_the_shards_hold(folder, removed, moved, outer, more):
    """Whatever else stands in it, and whatever lies beside them."""
    changed = {tensor: shard for tensor, shard in WEIGHT_MAP.items() if tensor not in removed} | moved
    index = json.dumps({**more, outer: changed})
    (folder / "model.safetensors.index.json").write_text(index)
    expected = json.loads(index).get("weight_map")
    try:
        with open_model(folder) as model:
            held = {tensor: shard for shard, file in model.weights.items() for tensor in file.tensors}
            ignored = set(model.ignored)
    except ModelFolderError:
        assert expected not in (WEIGHT_MAP, WEIGHT_MAP | {"x": "extra.safetensors"}, {"x": "extra.safetensors"})
        return
    assert held == expected
    assert ignored.isdisjoint(SHARDS) or held == {"x": "extra.safetensors"}

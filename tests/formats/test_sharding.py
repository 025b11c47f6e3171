from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import ConfigurationError
from arc_halo.formats.sharding import WEIGHTS_NAME, build_index, parse_size, plan_shards

SIZES = st.dictionaries(st.text(min_size=1), st.integers(0, 1000), min_size=1, max_size=30)


@given(SIZES, st.integers(1, 2000))
def test_every_tensor_is_in_one_shard_in_its_order(sizes, limit):
    shards = plan_shards(sizes, limit)
    assert [name for names in shards.values() for name in names] == list(sizes)
    assert all(len(names) == 1 or sum(sizes[name] for name in names) <= limit for names in shards.values())


@given(SIZES, st.integers(1, 2000))
def test_no_shard_could_take_the_next_tensor(sizes, limit):
    shards = list(plan_shards(sizes, limit).values())
    for before, after in pairwise(shards):
        assert sum(sizes[name] for name in [*before, after[0]]) > limit


@given(SIZES, st.integers(1, 2000))
def test_an_index_says_where_each_is(sizes, limit):
    shards = plan_shards(sizes, limit)
    index = json.loads(build_index(shards, sum(sizes.values())))
    assert index["metadata"] == {"total_size": sum(sizes.values())}
    assert index["weight_map"] == {name: shard for shard, names in shards.items() for name in names}


def test_names():
    assert list(plan_shards({"a": 4, "b": 4}, 8)) == [WEIGHTS_NAME]
    assert list(plan_shards({"a": 4, "b": 4, "c": 1}, 5)) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert plan_shards({}, 1) == {WEIGHTS_NAME: []}


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("5GB", 5 * 10**9), ("1.5 kB", 1500), ("2GiB", 2 << 30), ("100", 100), ("7B", 7), ("3m", 3 * 10**6)],
)
def test_sizes(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GB", "0", "-5GB", "5 apples", "0.0001B", "9" * 400])
def test_what_is_no_size(text):
    with pytest.raises(ConfigurationError, match="is no size; write one such as 5GB"):
        parse_size(text)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_holds_nothing(limit):
    with pytest.raises(ConfigurationError, match="holds nothing"):
        plan_shards({"a": 1}, limit)

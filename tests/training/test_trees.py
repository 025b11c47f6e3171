"""Trees survive PostgreSQL's JSON without a difference."""

import json
import math
import random
import struct
from collections import Counter, OrderedDict

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, literal, select
from sqlalchemy.dialects.postgresql import JSONB

from arc_halo.errors import CheckpointError
from arc_halo.training.trees import MAX_DEPTH, canonical_json, decode_tree, encode_tree
from tests.fixtures.tensors import NUMPY_DTYPES, arrays, random_array

SCALARS = st.builds(
    lambda dtype, seed: random_array(dtype, (), seed)[()], st.sampled_from(NUMPY_DTYPES), st.integers(0)
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**2000), 2**2000),
    st.floats(),
    st.text(st.characters(exclude_categories=())),
    st.binary(max_size=600),
    st.lists(st.integers(-(2**33), 2**64), min_size=60, max_size=70),
    SCALARS,
    arrays(),
)
KEYS = st.one_of(
    st.text(st.characters(exclude_categories=())), st.sampled_from(["$tensor", "$keys"]), st.integers(), st.floats()
)
KEYS = st.recursive(KEYS, lambda keys: st.tuples(keys, keys), max_leaves=3)
TREES = st.recursive(
    LEAVES,
    lambda trees: st.one_of(
        st.lists(trees),
        st.lists(trees).map(tuple),
        st.dictionaries(KEYS, trees),
        st.dictionaries(KEYS, trees).map(OrderedDict),
        st.dictionaries(KEYS, st.integers()).map(Counter),
    ),
    max_leaves=12,
)


def spelt(value):
    """Everything that tells a value from others."""
    kind = type(value)
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        little = array.astype(array.dtype.newbyteorder("<"))
        return isinstance(value, np.generic), str(little.dtype), array.shape, little.tobytes()
    if isinstance(value, float):
        return struct.pack("d", value)
    if isinstance(value, dict):
        return kind, [(spelt(key), spelt(each)) for key, each in value.items()]
    return (kind, [spelt(each) for each in value]) if isinstance(value, list | tuple) else (kind, value)


def shuffled(encoded):
    """As JSONB gives it back: keys by length and bytes."""
    if isinstance(encoded, dict):
        return {key: shuffled(encoded[key]) for key in sorted(encoded, key=lambda key: (len(key.encode()), key))}
    return [shuffled(each) for each in encoded] if isinstance(encoded, list) else encoded


@given(TREES)
def test_trees_come_back_as_they_were(tree):
    encoded, stored = encode_tree(tree, "x")
    again = shuffled(json.loads(json.dumps(encoded, allow_nan=False)))
    assert spelt(decode_tree(again, stored)) == spelt(tree)
    assert canonical_json(again) == canonical_json(encoded)
    assert all(name.startswith("x") and name.isprintable() for name in stored)


# Each is one that JSONB would change: see the database do it.
HARD = [
    -0.0,
    1e16,
    1e15,
    -1e22,
    5e-324,
    1e-05,
    1e-31,
    0.1,
    1.0,
    math.inf,
    -math.inf,
    2**64,
    -(2**1024),
    10**5000,
    "\0",
    "\ud800",
    "é\U0001f600",
    {"b": 1, "aa": 2, "a": 3},
    {"aa": 1, "b": 2},
    {"$keys": 1},
    {"a": {"$float": "1"}},
    {1: 2, "1": 3, None: 4, (1, 2): 5, 1.5: 6, False: 7},
    {"\0": 1},
    [(), [], {}, b"", ""],
    random.Random(7).getstate(),
    np.random.default_rng(3).bit_generator.state,
    np.random.RandomState(3).get_state(),
    struct.unpack("d", bytes.fromhex("010203040506f87f"))[0],
]


def test_the_database_changes_nothing(session):
    encoded, stored = encode_tree(HARD, "x")
    kept = session.scalar(select(func.coalesce(literal(encoded, JSONB), literal([], JSONB))))
    assert spelt(decode_tree(kept, stored)) == spelt(HARD)
    assert canonical_json(kept) == canonical_json(encoded)


def test_what_sql_can_read_stands_as_it_is():
    tree = {"lr": 1e-05, "name": "adam", "betas": [0.9, 0.999], "step": 7, "fused": None}
    encoded, stored = encode_tree(tree, "x")
    assert {key: each for key, each in encoded.items() if key != "$keys"} == tree
    assert not stored


def test_large_values_are_tensors_and_small_ones_are_not():
    tree = {"big": np.zeros(65, np.float32), "small": np.zeros(64, np.float32), "bytes": bytes(257), "ints": [1] * 64}
    assert list(encode_tree(tree, "rng/0")[1]) == ["rng/0/big", "rng/0/bytes", "rng/0/ints"]


@pytest.mark.parametrize("keys", [("a/b", "a"), ("a\n", "b"), ("x" * 400, "b")])
def test_names_of_tensors_are_unique_short_and_printable(keys):
    big = np.arange(100.0)
    tree = {keys[0]: big, keys[1]: {"b": big + 1}, "#0": big + 2}
    encoded, stored = encode_tree(tree, "x")
    assert len(stored) == 3
    assert all(len(name) <= 300 and name.isprintable() for name in stored)
    assert spelt(decode_tree(encoded, stored)) == spelt(tree)


class Odd(dict):
    pass


HOLDS_ITSELF = []
HOLDS_ITSELF.append(HOLDS_ITSELF)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": [object()]}, r"x/a/0 is a builtins\.object"),
        ({"a": Odd()}, r"x/a is a .*Odd"),
        ({"a": {1, 2}}, r"x/a is a builtins\.set"),
        ({"a": np.array([None])}, "x/a: arrays of dtype object"),
        ({"a": np.longdouble(1)}, "x/a: arrays of dtype"),
        ({"a": np.str_("b")}, "x/a: arrays of dtype"),
        (HOLDS_ITSELF, f"deeper than {MAX_DEPTH}"),
    ],
)
def test_anything_else_is_refused_by_its_place(tree, message):
    with pytest.raises(CheckpointError, match=message):
        encode_tree(tree, "x")


def test_values_of_a_later_release_are_refused():
    with pytest.raises(CheckpointError, match="later"):
        decode_tree({"$quaternion": [1, 2, 3, 4]}, {})


def test_decoded_arrays_can_be_written_to():
    encoded, stored = encode_tree({"a": np.zeros(2, ml_dtypes.bfloat16)}, "x")
    decode_tree(encoded, stored)["a"][0] = 1

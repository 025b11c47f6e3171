"""Whatever names, shapes and configs a file brings, a description comes out and leaves no tensor behind."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from arc_halo.dtypes import DTYPES
from arc_halo.formats.architectures import TensorShape, describe
from tests.fixtures.models import bert, gpt2, llama, mixtral

WORDS = sorted(
    {part for model in (bert("bert."), gpt2(), llama(), mixtral()) for name in model.shapes for part in name.split(".")}
)
PARTS = st.one_of(st.sampled_from([*WORDS, "", "007", "99999999999", "#", "~", "weight", "٣"]), st.text(max_size=4))
NAMES = st.lists(PARTS, min_size=1, max_size=7).map(".".join) | st.sampled_from(sorted(llama().shapes))
SHAPES = st.lists(st.sampled_from([0, 1, 2, 4, 8, 16, 2**62]), max_size=4).map(tuple)
FIELDS = st.sampled_from(
    [*bert().config, *llama().config, "n_head", "n_layer", "text_config", "num_experts_per_tok", "tie_word_embeddings"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([1, 2, 4]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=8,
)
TENSORS = st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES), max_size=20)


@settings(max_examples=300, deadline=None)
@given(config=st.dictionaries(FIELDS, JSON, max_size=8), tensors=TENSORS, known=st.booleans())
def test_any_file_and_config_are_described(config, tensors, known):
    if known:
        tensors = {name: ("F32", shape) for name, shape in llama().shapes.items()} | tensors
    shaped = {name: TensorShape(name, DTYPES[dtype], shape) for name, (dtype, shape) in tensors.items()}
    architecture = describe(config, shaped)
    keys = [layer.key for layer in architecture.layers]
    others = {layer.key for layer in architecture.layers if layer.layer_type == "other"}
    assert [weight.name for weight in architecture.weights] == list(tensors)
    assert len(set(keys)) == len(keys)
    assert {weight.layer_key for weight in architecture.weights} <= set(keys)
    assert architecture.unrecognised == sum(weight.layer_key in others for weight in architecture.weights)
    for index, layer in enumerate(architecture.layers):
        assert layer.parent_key is None or layer.parent_key in keys[:index]
        assert layer.layer_index is None or 0 <= layer.layer_index < 2**31


@settings(max_examples=100, deadline=None)
@given(
    heads=st.integers(1, 8), sharing=st.integers(1, 4), head_dim=st.integers(1, 9), hidden=st.integers(1, 40),
    fused=st.booleans(),
)  # fmt: skip
def test_heads_stay_inside_their_tensors(heads, sharing, head_dim, hidden, fused):
    model = llama(hidden=hidden, heads=heads * sharing, kv_heads=heads, head_dim=head_dim, fused=fused)
    shaped = {name: TensorShape(name, DTYPES["F32"], shape) for name, shape in model.shapes.items()}
    found = describe(model.config, shaped).heads
    assert len(found) == 2 * heads * sharing
    for head in found:
        for part in (head.query, head.key, head.value, head.output):
            assert part.stop - part.start == head_dim
            assert 0 <= part.start < part.stop <= model.shapes[part.tensor][part.axis]

from __future__ import annotations

import hashlib
from collections import Counter

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from hypothesis import HealthCheck, given, settings
from safetensors.numpy import save_file
from sqlalchemy import select, text

from arc_halo.dtypes import BLOCK_DTYPES, by_name
from arc_halo.errors import (
    GGUFError,
    ModelFolderError,
    QuantizationError,
    SafetensorsError,
    SliceError,
    TensorError,
    TensorNotFound,
)
from arc_halo.formats.gguf_header import TYPE_NAMES
from arc_halo.quantization.ggml import DEQUANTIZABLE
from arc_halo.registry import (
    check_model,
    compare_models,
    dequantize_model,
    dequantize_tensor,
    export_model,
    find_similar_tokens,
    import_model,
    iter_tensors,
    load_model,
    quantize_model,
    read_tensor,
    repair,
)
from arc_halo.schema import AttentionHead, Embedding, Model, ModelFile, Tensor
from arc_halo.store import put as store_put
from arc_halo.store.cache import ReadCache
from tests.fixtures.gguf import entry, file_bytes, tensor
from tests.fixtures.gguf_models import (
    EVERY_KIND,
    FEED_FORWARD,
    HIDDEN,
    floats,
    llama,
    metadata,
    random_blocks,
    stored,
    write,
)
from tests.fixtures.models import VOCABULARY, bert, write_folder
from tests.fixtures.tensors import count, same
from tests.formats.test_gguf_properties import build, layouts

DOWN = "blk.1.ffn_down.weight"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def tensors():
    return llama()


@pytest.fixture
def path(tmp_path, tensors):
    return write(tmp_path / "tiny.gguf", tensors, metadata())


@pytest.fixture
def model(session, path):
    return import_model(session, path, name="tiny")


def test_what_is_exported_is_the_file(session, model, path, tmp_path):
    written = export_model(session, model, tmp_path / "out")
    assert [each.name for each in written] == ["tiny.gguf"]
    assert sha256(written[0]) == sha256(path)


def test_every_type_and_every_kind_of_metadata_is_exported_byte_for_byte(session, tmp_path):
    every = {
        f"t.{name}": stored(name, (2, by_name(name).block_elements * 3), seed)
        for seed, name in enumerate(TYPE_NAMES.values())
    }
    path = write(tmp_path / "every.gguf", every, EVERY_KIND | metadata(), alignment=128)
    model = import_model(session, path, name="every")
    (written,) = export_model(session, model, tmp_path / "out")
    assert sha256(written) == sha256(path)
    assert list(check_model(session, model)) == []
    again = import_model(session, written, name="again")
    assert again.weights_digest == model.weights_digest


@pytest.mark.parametrize("tail", [b"", bytes(24)])
@pytest.mark.parametrize("version", [2, 3])
def test_files_that_end_with_and_without_padding(session, tmp_path, tail, version):
    path = tmp_path / "small.gguf"
    tensors = [tensor("b", [2], 0, 64), tensor("a", [3], 24, 0), tensor("none", [0], 0, 32), tensor("s", [], 0, 32)]
    data = b"\1\2\3" + bytes(29) + b"\4\5\6\7" + bytes(28) + bytes(8) + tail
    path.write_bytes(file_bytes([entry("a.b", [["bool"]], [[True]])], tensors, data=data, version=version))
    (written,) = export_model(session, import_model(session, path, name="small"), tmp_path / "out")
    assert written.read_bytes() == path.read_bytes()


def test_a_file_of_no_tensors(session, tmp_path):
    path = write(tmp_path / "vocabulary.gguf", {}, metadata())
    (written,) = export_model(session, import_model(session, path, name="vocabulary"), tmp_path / "out")
    assert written.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("small_nbytes", [-1, 2**30])
def test_a_big_import_too(database, tmp_path, path, monkeypatch, small_nbytes):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", small_nbytes)
    with database.session() as session:
        (written,) = export_model(session, import_model(session, path, name="tiny"), tmp_path / "out")
        assert sha256(written) == sha256(path)
        session.rollback()


def test_tensors_are_stored_as_their_blocks(session, model, tensors):
    read = dict(iter_tensors(session, model))
    assert read.keys() == tensors.keys()
    for name, (type_name, array) in tensors.items():
        assert read[name].tobytes() == array.tobytes()
        if type_name in BLOCK_DTYPES:
            assert same(read[name], array)
    rows = {weight.name: weight.tensor for weight in model.weights}
    assert (rows[DOWN].dtype, rows[DOWN].shape, rows[DOWN].nbytes) == ("Q6_K", [HIDDEN, FEED_FORWARD], 64 * 210)
    assert rows[DOWN].element_count == HIDDEN * FEED_FORWARD


def test_blocks_are_read_as_the_numbers_of_the_reference(session, model, tensors):
    for name in ("blk.0.attn_q.weight", "blk.0.ffn_up.weight", DOWN):
        assert same(read_tensor(session, model, name, dequantize=True), floats(tensors[name]))
        assert same(dequantize_tensor(session, model, name), floats(tensors[name]))
    assert same(read_tensor(session, model, "token_embd.weight", dequantize=True), tensors["token_embd.weight"][1])


@pytest.mark.parametrize("name", DEQUANTIZABLE)
def test_every_type_that_can_be_dequantised(session, tmp_path, name):
    blocks = random_blocks(name, (3, 5, 512), 7)
    path = write(tmp_path / "one.gguf", {"w.weight": (name, blocks)}, {})
    model = import_model(session, path, name="one")
    expected = floats((name, blocks))
    assert same(read_tensor(session, model, "w.weight", dequantize=True), expected)
    assert same(read_tensor(session, model, "w.weight", slice(None, None, -2), dequantize=True), expected[::-2])
    row = session.scalars(select(Tensor)).one()
    assert row.min_value == expected.min()
    assert row.max_value == expected.max()
    assert row.mean == pytest.approx(expected.astype(np.float64).mean(), rel=1e-6)
    assert row.std == pytest.approx(expected.astype(np.float64).std(), rel=1e-6)
    assert (row.nan_count, row.inf_count) == (0, 0)


@pytest.mark.parametrize("rows", [3, -1, slice(2, 9), slice(None, None, 3), slice(9, 2), slice(50, None, -7)], ids=str)
@pytest.mark.parametrize("dequantize", [False, True])
def test_rows(session, model, tensors, rows, dequantize):
    expected = floats(tensors[DOWN]) if dequantize else tensors[DOWN][1]
    assert same(read_tensor(session, model, DOWN, rows, dequantize=dequantize), expected[rows])


@pytest.mark.parametrize("dequantize", [False, True])
def test_rows_that_are_not_there(session, model, dequantize):
    with pytest.raises(SliceError, match="row 64"):
        read_tensor(session, model, DOWN, 64, dequantize=dequantize)
    with pytest.raises(TensorNotFound):
        read_tensor(session, model, "blk.9.ffn_down.weight", dequantize=dequantize)


def test_rows_of_a_vector_in_blocks(session, tmp_path):
    blocks = random_blocks("Q8_0", (96,))
    model = import_model(session, write(tmp_path / "v.gguf", {"v.weight": ("Q8_0", blocks)}, {}), name="v")
    numbers = floats(("Q8_0", blocks))
    assert same(read_tensor(session, model, "v.weight", slice(32, 96)), blocks[34:])
    assert same(read_tensor(session, model, "v.weight", slice(5, 70, 3), dequantize=True), numbers[5:70:3])
    assert read_tensor(session, model, "v.weight", 5, dequantize=True) == numbers[5]
    with pytest.raises(SliceError, match="block"):
        read_tensor(session, model, "v.weight", slice(0, 5))
    with pytest.raises(SliceError, match="row 96"):
        read_tensor(session, model, "v.weight", 96, dequantize=True)


def test_iterating_and_loading_dequantise_too(session, model, tensors, tmp_path):
    expected = {name: floats(each) if each[0] in DEQUANTIZABLE else each[1] for name, each in tensors.items()}
    arrays = dict(iter_tensors(session, model, dequantize=True))
    assert arrays.keys() == expected.keys()
    assert all(same(arrays[name], expected[name]) for name in expected)
    cache = ReadCache(tmp_path / "cache", 2**30)
    for store in (None, cache, cache):
        loaded = load_model(session, model, cache=store, dequantize=True)
        assert all(same(loaded[name], expected[name]) for name in expected)
    for verify in (False, True):
        assert same(load_model(session, model, names=[DOWN], cache=cache, verify=verify)[DOWN], tensors[DOWN][1])


def test_our_own_schemes_are_read_the_same_way(session, tmp_path):
    small = bert(hidden=64)
    import_model(session, write_folder(small, tmp_path / "bert"), name="bert")
    made = quantize_model(session, "bert")
    name = "encoder.layer.1.attention.self.query.weight"
    expected = dequantize_tensor(session, made, name)
    assert same(read_tensor(session, made, name, dequantize=True), expected)
    assert same(read_tensor(session, made, name, slice(3, 9), dequantize=True), expected[3:9])
    assert same(read_tensor(session, made, name, 5, dequantize=True), expected[5])
    arrays = dict(iter_tensors(session, made, dequantize=True))
    assert arrays.keys() == small.arrays().keys()
    assert same(arrays[name], expected)
    loaded = load_model(session, made, cache=False, dequantize=True)
    assert all(same(loaded[each], arrays[each]) for each in arrays)
    assert loaded.keys() == arrays.keys()


def test_types_that_cannot_be_dequantised_are_kept_as_they_are(session, tmp_path):
    blocks = random_blocks("IQ4_XS", (4, 512))
    model = import_model(session, write(tmp_path / "iq.gguf", {"w.weight": ("IQ4_XS", blocks)}, {}), name="iq")
    assert same(read_tensor(session, model, "w.weight", slice(1, 3)), blocks[1:3])
    row = session.scalars(select(Tensor)).one()
    assert (row.element_count, row.nbytes, row.min_value, row.nan_count) == (2048, 4 * 272, None, None)
    assert model.parameter_count == 2048


@pytest.mark.parametrize(("kind", "shape"), [("IQ4_XS", (4, 512)), ("MXFP4", (4, 64))])
def test_what_cannot_be_dequantised_is_refused_by_name_and_else_as_stored(session, tmp_path, kind, shape):
    blocks, other = random_blocks(kind, shape), random_blocks("Q8_0", (4, 64))
    tensors = {"a.weight": (kind, blocks), "b.weight": ("Q8_0", other)}
    model = import_model(session, write(tmp_path / "mixed.gguf", tensors, {}), name="mixed")
    readings = [
        lambda rows: read_tensor(session, model, "a.weight", rows, dequantize=True),
        lambda _: dict(iter_tensors(session, model, ["b.weight", "a.weight"], dequantize=True)),
        lambda _: load_model(session, model, names=["a.weight"], cache=False, dequantize=True),
    ]
    for read in readings:
        for rows in (None, 0, slice(1, 3)):
            with pytest.raises(QuantizationError, match=f"blocks of {kind}, which cannot be dequantised"):
                read(rows)
    for arrays in (
        dict(iter_tensors(session, model, dequantize=True)),
        load_model(session, model, cache=False, dequantize=True),
    ):
        assert same(arrays["a.weight"], blocks)
        assert same(arrays["b.weight"], floats(("Q8_0", other)))


@pytest.mark.parametrize("other", ["IQ4_XS", "Q8_0"])
def test_a_model_is_dequantised_wholly_or_not_at_all(session, tmp_path, other):
    tensors = {
        "a.weight": ("IQ4_XS", random_blocks("IQ4_XS", (4, 512))),
        "b.weight": (other, random_blocks(other, (4, 512))),
    }
    model = import_model(session, write(tmp_path / "iq.gguf", tensors, {}), name="iq")
    with pytest.raises(QuantizationError, match="blocks of IQ4_XS, which cannot be dequantised"):
        dequantize_model(session, model)
    with pytest.raises(QuantizationError, match="blocks of IQ4_XS, which cannot be dequantised"):
        dequantize_tensor(session, model, "a.weight")
    assert session.scalars(select(Model)).all() == [model]


def test_scales_that_are_not_finite_are_counted(session, tmp_path):
    blocks = random_blocks("Q8_0", (4, 64))
    blocks[1, :2] = np.array([np.nan], "<f2").view(np.uint8)
    path = write(tmp_path / "nan.gguf", {"w.weight": ("Q8_0", blocks)}, {})
    model = import_model(session, path, name="nan")
    assert session.scalars(select(Tensor.nan_count)).one() == 32
    assert np.isnan(read_tensor(session, model, "w.weight", dequantize=True)).sum() == 32
    with pytest.raises(TensorError, match="stand for no number"):
        dequantize_tensor(session, model, "w.weight")


def test_layers_and_heads(session, model):
    types = Counter(layer.layer_type for layer in model.layers)
    assert types["block"] == types["attention"] == types["feedforward"] == 2
    attention = next(layer for layer in model.layers if layer.path == "blk.1.attn")
    assert attention.config == {"heads": 4, "key_value_heads": 2, "head_dim": 16}
    heads = session.scalars(
        select(AttentionHead).where(AttentionHead.layer_id == attention.id).order_by(AttentionHead.head_index)
    ).all()
    assert [head.kv_group for head in heads] == [0, 0, 1, 1]
    assert [(head.key_start, head.key_stop) for head in heads] == [(0, 16), (0, 16), (16, 32), (16, 32)]
    assert heads[2].query_weight.name == "blk.1.attn_q.weight"
    norm = next(layer for layer in model.layers if layer.path == "blk.0.attn_norm")
    assert norm.config == {"epsilon": 1e-5}


def test_weights_have_their_categories(session, model, tensors):
    by_name_ = {weight.name: weight for weight in model.weights}
    assert by_name_["token_embd.weight"].category == "embedding"
    assert by_name_["rope_freqs.weight"].category == "buffer"
    assert by_name_["output_norm.weight"].category == "norm"
    assert by_name_[DOWN].category == "weight"
    assert not by_name_[DOWN].is_trainable
    assert by_name_["output_norm.weight"].is_trainable
    numbers = sum(floats(each).size if each[0] in BLOCK_DTYPES else each[1].size for each in tensors.values())
    assert model.parameter_count == numbers - 8
    assert session.scalar(select(Model.parameter_count)) == numbers - 8


def test_the_config_says_what_the_metadata_say(model):
    config = model.architecture_config
    assert model.model_type == config["model_type"] == "llama"
    assert config["num_hidden_layers"] == 2
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (4, 2)
    assert (config["hidden_size"], config["intermediate_size"]) == (HIDDEN, FEED_FORWARD)
    assert config["rms_norm_eps"] == 1e-5
    assert config["vocab_size"] == len(VOCABULARY)
    assert config["gguf"]["general.name"] == "Tiny \u00e9"
    assert config["gguf"]["tokenizer.ggml.add_bos_token"] is True


def test_metadata_of_every_kind_fit_into_the_config(session, tmp_path):
    path = write(tmp_path / "kinds.gguf", {"w.weight": stored("F32", (2, 2))}, EVERY_KIND)
    found = import_model(session, path, name="kinds").architecture_config["gguf"]
    assert found["test.uint64"] == 2**64 - 1
    assert (found["test.float32"], found["test.nan"], found["test.float64"]) == ("Infinity", "NaN", 0.1)
    assert found["test.string"] == "\U0001f600 a\\x00b"
    assert found["test.strings"] == ["", "a", "\u00e9\\x00"]
    assert found["test.floats"] == [0.5, "-Infinity"]
    assert found["test.many"] == {"array_of": "int32", "count": 5000}
    assert found["test.arrays"] == {"array_of": "array", "count": 2}


def test_a_vocabulary_does_not_bloat_the_config(session, tmp_path):
    many = metadata() | {"tokenizer.ggml.tokens": ("array", [f"token {i}" for i in range(50_000)])}
    model = import_model(session, write(tmp_path / "many.gguf", {}, many), name="many")
    size = session.scalar(text("SELECT octet_length(architecture_config::text) FROM arc_halo.models"))
    assert size < 4000
    assert model.architecture_config["vocab_size"] == 50_000
    kept = session.scalars(select(ModelFile)).one()
    assert (kept.kind, kept.nbytes) == ("weights", (tmp_path / "many.gguf").stat().st_size)


@pytest.mark.parametrize("embedding", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_similar_tokens_are_found_whatever_the_type_of_the_embedding(session, tmp_path, embedding):
    tensors = llama(embedding=embedding)
    model = import_model(session, write(tmp_path / "m.gguf", tensors, metadata()), name="m")
    assert count(session, "embeddings") == len(VOCABULARY)
    found = find_similar_tokens(session, model, "king", k=3)
    matrix = read_tensor(session, model, "token_embd.weight", dequantize=True).astype(np.float64)
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    row = VOCABULARY.index("king")
    nearest = np.argsort(-(unit @ unit[row]))
    assert [each.label for each in found] == [VOCABULARY[i] for i in nearest if i != row][:3]
    stored_row = session.scalars(select(Embedding).where(Embedding.label == "king")).one()
    np.testing.assert_array_equal(stored_row.vector, matrix[row].astype(np.float32))


def test_an_embedding_that_cannot_be_dequantised_is_not_searchable(session, tmp_path):
    tensors = llama(embedding="IQ4_NL")
    model = import_model(session, write(tmp_path / "m.gguf", tensors, metadata()), name="m")
    assert count(session, "embeddings") == 0
    with pytest.raises(TensorNotFound, match="searchable"):
        find_similar_tokens(session, model, "king")


def test_bert_and_gpt2_are_told_by_the_same_names(session, tmp_path):
    hidden, fed = HIDDEN, FEED_FORWARD
    bert_tensors = {
        "token_embd.weight": stored("F32", (12, hidden)),
        "token_types.weight": stored("F32", (2, hidden)),
        "position_embd.weight": stored("F32", (32, hidden)),
        "token_embd_norm.weight": stored("F32", (hidden,)),
        **{f"blk.0.attn_{part}.weight": stored("F32", (hidden, hidden)) for part in "qkv"},
        **{f"blk.0.attn_{part}.bias": stored("F32", (hidden,)) for part in "qkv"},
        "blk.0.attn_output.weight": stored("F32", (hidden, hidden)),
        "blk.0.attn_output_norm.weight": stored("F32", (hidden,)),
        "blk.0.ffn_up.weight": stored("F32", (fed, hidden)),
        "blk.0.ffn_down.weight": stored("F32", (hidden, fed)),
        "blk.0.layer_output_norm.weight": stored("F32", (hidden,)),
    }
    path = write(tmp_path / "bert.gguf", bert_tensors, metadata("bert", kv_heads=4), architecture="bert")
    model = import_model(session, path, name="bert")
    assert Counter(session.scalars(select(Embedding.kind))) == {"token": 12, "position": 32, "segment": 2}
    assert sum(len(layer.heads) for layer in model.layers) == 4
    assert not any(layer.layer_type == "other" for layer in model.layers)
    fused = {
        "token_embd.weight": stored("F16", (12, hidden)),
        "position_embd.weight": stored("F32", (32, hidden), 3),
        "blk.0.attn_norm.weight": stored("F32", (hidden,)),
        "blk.0.attn_norm.bias": stored("F32", (hidden,)),
        "blk.0.attn_qkv.weight": stored("Q8_0", (3 * hidden, hidden)),
        "blk.0.attn_qkv.bias": stored("F32", (3 * hidden,)),
        "blk.0.attn_output.weight": stored("Q8_0", (hidden, hidden)),
        "blk.0.ffn_norm.weight": stored("F32", (hidden,)),
        "blk.0.ffn_up.weight": stored("Q8_0", (fed, hidden)),
        "blk.0.ffn_down.weight": stored("Q8_0", (hidden, fed)),
        "output_norm.weight": stored("F32", (hidden,)),
    }
    path = write(tmp_path / "gpt2.gguf", fused, metadata("gpt2", kv_heads=4), architecture="gpt2")
    model = import_model(session, path, name="gpt2")
    attention = next(layer for layer in model.layers if layer.layer_type == "attention")
    assert [(head.query_start, head.key_start, head.value_start) for head in attention.heads] == [
        (16 * i, hidden + 16 * i, 2 * hidden + 16 * i) for i in range(4)
    ]


def test_mixtures_of_experts(session, tmp_path):
    tensors = {name: each for name, each in llama().items() if ".ffn_" not in name or "norm" in name}
    for block in range(2):
        tensors |= {
            f"blk.{block}.ffn_gate_inp.weight": stored("F32", (4, HIDDEN)),
            f"blk.{block}.ffn_gate_exps.weight": stored("Q4_0", (4, FEED_FORWARD, HIDDEN)),
            f"blk.{block}.ffn_up_exps.weight": stored("Q4_0", (4, FEED_FORWARD, HIDDEN), 1),
            f"blk.{block}.ffn_down_exps.weight": stored("Q4_K", (4, HIDDEN, FEED_FORWARD), 2),
        }
    entries = metadata() | {"llama.expert_count": ("uint32", 4), "llama.expert_used_count": ("uint32", 2)}
    model = import_model(session, write(tmp_path / "moe.gguf", tensors, entries), name="moe")
    experts = next(layer for layer in model.layers if layer.path == "blk.1.ffn.experts")
    assert experts.config == {"role": "experts", "experts": 4, "intermediate_size": FEED_FORWARD}
    router = next(layer for layer in model.layers if layer.path == "blk.1.ffn.router")
    assert router.config == {"role": "router", "experts_per_token": 2}
    name = "blk.1.ffn_down_exps.weight"
    assert same(read_tensor(session, model, name, 2, dequantize=True), floats(tensors[name])[2])


def test_head_counts_for_each_block(session, tmp_path):
    same_counts = write(tmp_path / "same.gguf", llama(), metadata(kv_heads=[2, 2]))
    other_counts = write(tmp_path / "other.gguf", llama(), metadata(kv_heads=[2, 1]))
    assert sum(len(layer.heads) for layer in import_model(session, same_counts, name="same").layers) == 8
    model = import_model(session, other_counts, name="other")
    assert sum(len(layer.heads) for layer in model.layers) == 0
    assert model.architecture_config["num_key_value_heads"] == [2, 1]


def test_a_dequantised_model_is_one_of_floats(session, model, tensors, tmp_path):
    restored = dequantize_model(session, model, "F16")
    types = {weight.name: weight.tensor.dtype for weight in restored.weights}
    assert set(types.values()) == {"F16", "F32"}
    assert same(read_tensor(session, restored, DOWN), floats(tensors[DOWN]).astype(np.float16))
    assert all(weight.is_trainable for weight in restored.weights if weight.category == "weight")
    written = export_model(session, restored, tmp_path / "out")
    assert sorted(each.name for each in written) == ["config.json", "model.safetensors"]


def test_changed_weights_in_blocks_have_no_safetensors(session, model, tmp_path):
    session.execute(text("DELETE FROM arc_halo.model_weights WHERE name = 'rope_freqs.weight'"))
    with pytest.raises(SafetensorsError, match="dequantise the model"):
        export_model(session, model, tmp_path / "out")


def test_content_is_shared_with_safetensors(session, tmp_path):
    array = stored("F16", (12, HIDDEN))[1]
    from_gguf = import_model(session, write(tmp_path / "a.gguf", {"a.weight": ("F16", array)}, {}), name="a")
    save_file({"a.weight": array}, tmp_path / "a.safetensors")
    other = import_model(session, tmp_path / "a.safetensors", name="b")
    assert from_gguf.weights_digest == other.weights_digest


def test_a_new_version_is_stored_as_deltas(session, tmp_path):
    first = llama(attention="Q8_0", hidden=256)
    second = {name: (kind, array.copy()) for name, (kind, array) in first.items()}
    for _, array in second.values():
        array.reshape(-1).view(np.uint8)[5] ^= 1
    import_model(session, write(tmp_path / "1.gguf", first, metadata()), name="m")
    model = import_model(session, write(tmp_path / "2.gguf", second, metadata()), name="m", compression="dense")
    assert session.scalar(text("SELECT count(*) FROM arc_halo.tensor_data WHERE base_digest IS NOT NULL")) > 10
    for name, array in iter_tensors(session, model):
        assert array.tobytes() == second[name][1].tobytes()


def test_one_of_several_files_is_refused(session, tmp_path):
    entries = metadata() | {"split.count": ("uint16", 3), "split.no": ("uint16", 0)}
    with pytest.raises(ModelFolderError, match=r"one of 3 files of a model; merge them"):
        import_model(session, write(tmp_path / "a-00001-of-00003.gguf", llama(), entries), name="m")
    assert count(session, "tensor_metadata") == 0


def test_a_gguf_file_beside_safetensors_is_left_out(session, tmp_path, tensors):
    folder = write_folder(bert(), tmp_path / "both")
    path = write(folder / "tiny.gguf", tensors, metadata())
    model = import_model(session, folder, name="folder")
    assert model.model_type == "bert"
    assert "tiny.gguf" not in session.scalars(select(ModelFile.path)).all()
    assert import_model(session, path, name="file").model_type == "llama"


def test_a_folder_of_gguf_files_names_them(session, path):
    with pytest.raises(ModelFolderError, match=r"no \.safetensors file, but tiny\.gguf; give that file itself"):
        import_model(session, path.parent, name="folder")


def test_a_file_cut_short_while_it_is_read_leaves_no_model(database, path, monkeypatch):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", -1)

    def cut(phase, _done, _total):
        if phase == "hash":
            with path.open("r+b") as file:
                file.truncate(5000)

    with database.session() as session:
        with pytest.raises(GGUFError, match=r"tiny\.gguf"):
            import_model(session, path, name="cut", progress=cut)
        assert count(session, "models") == 0


def test_the_reference_reads_what_is_exported(session, model, tensors, tmp_path):
    (written,) = export_model(session, model, tmp_path / "out")
    found = {each.name: each for each in gguf.GGUFReader(written).tensors}
    assert {name: each.tensor_type.name for name, each in found.items()} == {n: each[0] for n, each in tensors.items()}
    assert all(found[name].data.tobytes() == each[1].tobytes() for name, each in tensors.items())


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts)
def test_any_file_is_exported_as_it_was_imported(session, tmp_path, layout):
    path = tmp_path / "any.gguf"
    path.write_bytes(build(**layout)[0])
    with session.begin_nested() as savepoint:
        model = import_model(session, path, name="any")
        (written,) = export_model(session, model, tmp_path / "out")
        assert written.read_bytes() == path.read_bytes()
        assert list(check_model(session, model)) == []
        savepoint.rollback()


def test_a_relative_is_found_by_the_numbers_that_blocks_stand_for(session, tmp_path):
    numbers = (np.random.default_rng(5).standard_normal((512, 256)) * 0.02).astype(np.float32)
    near = numbers + (np.random.default_rng(6).standard_normal(numbers.shape) * 1e-5).astype(np.float32)
    for name, each in {"first": numbers, "second": near}.items():
        blocks = quantize(each, gguf.GGMLQuantizationType.Q8_0)
        import_model(session, write(tmp_path / f"{name}.gguf", {f"{name}.weight": ("Q8_0", blocks)}, {}), name=name)
    assert session.scalar(text("SELECT count(*) FROM arc_halo.tensor_data WHERE base_digest IS NOT NULL")) == 1
    assert list(check_model(session, "second")) == []


def test_damaged_blocks_are_put_right_from_the_file(session, model, path):
    session.execute(text("UPDATE arc_halo.tensor_data SET payload = set_bit(payload, 77, 1 - get_bit(payload, 77))"))
    assert list(check_model(session, model))
    assert repair(session, model, copies=[path]).missing == []
    assert list(check_model(session, model)) == []


def test_blocks_that_differ_are_told_and_not_measured(session, model, tmp_path):
    import_model(session, write(tmp_path / "2.gguf", llama(seed=1), metadata()), name="tiny", version="2")
    compared = compare_models(session, model, "tiny@2", values=True)
    reasons = {each.name: each.reason for each in compared.differences}
    assert reasons[DOWN] == "Q6_K is packed"
    assert reasons["token_embd.weight"] is None

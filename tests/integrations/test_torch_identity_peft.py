"""A PEFT model is a base, which may be one of the database, and an adapter."""

from __future__ import annotations

import uuid

import peft
import pytest
import torch

from arc_halo.integrations.torch_identity import identify, namespace_of, remember_registered
from tests.fixtures.tiny_models import logits, tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries warn of is not ours

MODEL_ID, DIGEST = uuid.UUID(int=1), b"\7" * 32


def lora(seed=0, kind=peft.LoraConfig, **options):
    """A base as `load_pretrained` gives it, and the same with an adapter that does something."""
    base = tiny("llama")
    remember_registered(base, MODEL_ID, DIGEST)
    model = peft.get_peft_model(base, kind(target_modules=["q_proj", "up_proj"], **options)).eval()
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    return base, model


def test_base_and_adapter_are_told_apart():
    base, model = lora()
    known = identify(model)
    assert (known.is_registered, known.model_id, known.weights_digest) == (True, MODEL_ID, DIGEST)
    assert len(known.adapter_digest) == 32
    assert identify(lora()[1]) == known
    assert identify(lora(seed=1)[1]).adapter_digest != known.adapter_digest
    assert namespace_of(known, kind="activation", layout="x").adapter_digest == known.adapter_digest
    assert not identify(base).is_registered  # the adapter's layers are in it, and it computes with them


def test_the_base_has_the_digest_that_it_had_alone():
    _, model = lora()
    model.base_model.model.model.norm.weight.data.add_(1)
    alone = tiny("llama")
    alone.model.norm.weight.data.add_(1)
    known = identify(model)
    assert not known.is_registered
    assert known.weights_digest == identify(alone).weights_digest


def test_a_merged_adapter_is_part_of_the_base():
    _, model = lora()
    before, answer = identify(model), logits(model)
    model.merge_adapter()
    merged = identify(model)
    assert not merged.is_registered
    assert merged.weights_digest != before.weights_digest
    model.unmerge_adapter()
    whole = model.merge_and_unload()
    assert torch.allclose(logits(whole), answer, atol=1e-4)
    assert not identify(whole).is_registered
    assert identify(whole).adapter_digest is None


def test_adapters_that_are_scaled_switched_or_off():
    _, model = lora()
    model.add_adapter("other", peft.LoraConfig(target_modules=["q_proj"]))
    model.set_adapter("default")
    seen = [identify(model)]
    model.set_adapter("other")
    seen.append(identify(model))
    with model.disable_adapter():
        seen.append(identify(model))
    model.set_adapter("default")
    assert identify(model) == seen[0]
    model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] *= 2
    seen.append(identify(model))
    assert len({each.config_digest for each in seen}) == len(seen)
    assert all(each.is_registered for each in seen)


def test_an_adapter_in_a_model_of_transformers_is_part_of_its_weights():
    model = tiny("llama")
    remember_registered(model, MODEL_ID, DIGEST)
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), model)
    known = identify(model.eval())
    assert (known.is_registered, known.adapter_digest) == (False, None)


def test_a_prompt_is_an_adapter():
    base = tiny("llama")
    remember_registered(base, MODEL_ID, DIGEST)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(base, config).eval()
    known = identify(model)
    assert known.is_registered
    assert known.adapter_digest
    model.prompt_encoder["default"].embedding.weight.data.add_(1)
    assert identify(model).adapter_digest != known.adapter_digest

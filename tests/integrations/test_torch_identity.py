"""A module's identity changes with whatever changes its results, and with nothing else."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import logging
import pathlib
import pickle
import uuid

import numpy as np
import pytest
import torch
import transformers

from arc_halo.errors import CacheError, TensorError
from arc_halo.integrations.torch import save_state_dict
from arc_halo.integrations.torch_identity import (
    contents,
    identify,
    identity,
    namespace_of,
    remember_registered,
)
from tests.fixtures.small_transformer import SmallTransformer
from tests.fixtures.tiny_models import logits, tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries warn of is not ours

MODEL_ID, DIGEST = uuid.UUID(int=1), b"\7" * 32


@pytest.fixture
def llama():
    """As `load_pretrained` gives it."""
    model = tiny("llama")
    remember_registered(model, MODEL_ID, DIGEST)
    return model


def add_in_place(model):
    with torch.no_grad():
        model.model.norm.weight.add_(1)


def add_behind_the_counters(model):
    model.model.norm.weight.data.add_(1)


def change_one_bit(model):
    model.lm_head.weight.data.view(torch.int32)[63, 31] ^= 1


def write_through_numpy(model):
    model.lm_head.weight.detach().numpy()[0, 0] += 1


def step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).loss.backward()
    optimizer.step()


def merge_lora(model):
    weight = model.model.layers[0].self_attn.q_proj.weight
    weight.data += torch.full((weight.shape[0], 1), 1e-3) @ torch.full((1, weight.shape[1]), 1e-3)


def attach_lora(model):
    model.model.layers[0].self_attn.q_proj.lora_A = torch.nn.Linear(32, 4, bias=False)


def replace_parameter(model):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1)


def swap_layers(model):
    first, second = model.model.layers
    model.model.layers = torch.nn.ModuleList([second, first])


def cast(model):
    model.to(torch.bfloat16)


WEIGHTS = [
    add_in_place, add_behind_the_counters, change_one_bit, write_through_numpy, step, merge_lora, attach_lora,
    replace_parameter, swap_layers, cast,
]  # fmt: skip


@pytest.mark.parametrize("change", WEIGHTS, ids=lambda change: change.__name__)
def test_a_changed_weight_is_of_no_model_in_the_database(llama, change):
    before = identify(llama)
    assert (before.is_registered, before.model_id, before.weights_digest) == (True, MODEL_ID, DIGEST)
    own = identify(copy.deepcopy(llama)).weights_digest
    change(llama)
    after = identify(llama)
    assert (after.is_registered, after.model_id) == (False, None)
    assert after.weights_digest not in (DIGEST, own)
    assert identify(llama) == after


@dataclasses.dataclass
class Steering:
    vector: torch.Tensor
    scale: float = 1.0


def edit_config(model):
    model.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}


def scale_rope(model):
    model.model.rotary_emb.inv_freq /= 2


def scale_rope_behind_the_counters(model):
    model.model.rotary_emb.inv_freq.data[0] *= 1.5


def scale_attention(model):
    model.model.layers[1].self_attn.scaling *= 2


def widen_epsilon(model):
    model.model.norm.variance_epsilon = 1e-3


def other_activation(model):
    model.model.layers[0].mlp.act_fn = torch.nn.GELU()


def a_function_for_an_activation(model):
    del model.model.layers[0].mlp.act_fn
    model.model.layers[0].mlp.act_fn = torch.tanh


def other_attention(model):
    model.set_attn_implementation("eager")


def drop_a_layer(model):
    model.config.num_hidden_layers = 1


def a_tensor_beside_the_buffers(model):
    model.model.steering = torch.ones(32)


def a_tensor_in_a_list(model):
    model.model.steering = [torch.ones(32)]


def a_tensor_in_a_dict(model):
    model.model.layers[0].tables = {"a": (torch.ones(2), None), 1: "text"}


def an_array(model):
    model.model.mask = np.ones(3, np.uint16)


def an_array_in_a_list(model):
    model.model.masks = [np.arange(3), np.float32(2)]


def a_tensor_in_a_partial(model):
    model.model.layers[0].mlp.act = functools.partial(torch.add, torch.ones(3))


def a_tensor_in_a_dataclass(model):
    model.model.layers[0].steering = Steering(torch.ones(3))


def another_config(model):
    model.model.other_config = transformers.GPT2Config(n_layer=7)


BESIDES = [
    a_tensor_in_a_list, a_tensor_in_a_dict, an_array, an_array_in_a_list, a_tensor_in_a_partial, another_config,
    a_tensor_in_a_dataclass,
    edit_config, scale_rope, scale_rope_behind_the_counters, scale_attention, widen_epsilon, other_activation,
    a_function_for_an_activation, other_attention, drop_a_layer, a_tensor_beside_the_buffers,
]  # fmt: skip


@pytest.mark.parametrize("change", BESIDES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("changes", ["content", "versions"])
def test_what_changes_results_beside_the_weights_changes_the_config(llama, change, changes):
    before = identify(llama, changes=changes)
    change(llama)
    after = identify(llama, changes=changes)
    assert after.config_digest != before.config_digest
    assert after.weights_digest == before.weights_digest
    assert after.is_registered


def write_into_a_list(model):
    model.steering[0].data[1] += 1


def write_into_a_dict(model):
    model.tables["a"][0].mul_(2)


def write_into_an_array(model):
    model.array[1] += 1


def write_into_a_dataclass(model):
    model.made.vector.data += 1


def another_scale_in_a_dataclass(model):
    model.made.scale = 2.0


def write_into_a_partial(model):
    model.function.args[0].data += 1


def another_order(model):
    model.pointers.reverse()


INSIDE = [
    write_into_a_list, write_into_a_dict, write_into_an_array, write_into_a_dataclass, another_scale_in_a_dataclass,
    write_into_a_partial, another_order,
]  # fmt: skip


@pytest.mark.parametrize("change", INSIDE, ids=lambda change: change.__name__)
@pytest.mark.parametrize("changes", ["content", "versions"])
def test_what_attributes_hold_is_looked_into(llama, change, changes):
    llama.steering, llama.tables = [torch.ones(3)], {"a": (torch.ones(2), None)}
    llama.array, llama.made = np.ones(3), Steering(torch.ones(3))
    llama.function = functools.partial(torch.add, torch.ones(2))
    llama.pointers = [llama.lm_head.weight, llama.model.norm.weight]
    before = identify(llama, changes=changes)
    assert identify(llama, changes=changes) == before
    change(llama)
    after = identify(llama, changes=changes)
    assert after.config_digest != before.config_digest
    assert after.weights_digest == before.weights_digest


class Unknown:
    scale = 2


@pytest.mark.parametrize(
    "value",
    [Unknown(), [Unknown()], {"a": Unknown()}, [torch.nn.Linear(2, 2)], np.array([Unknown()]), torch.Generator()],
    ids=["object", "list", "dict", "module in a list", "array of objects", "generator"],
)
def test_an_attribute_that_no_digest_tells_is_refused(llama, value):
    llama.model.layers[0].secret = value
    with pytest.raises(CacheError, match=r"'model\.layers\.0' has in 'secret'"):
        identify(llama)


def test_known_attributes_are_no_harm(llama):
    before = identify(llama)
    llama.model.log = logging.getLogger("model")
    llama.model.first = [llama.model.layers[0]]
    llama.model.names = {"b", "a"}
    llama.model.place = pathlib.PurePosixPath("x")
    assert identify(llama).weights_digest == before.weights_digest
    assert identify(llama) == identify(llama)


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.LSTM(3, 4, 2), torch.nn.GRU(3, 4), torch.nn.MultiheadAttention(4, 2), torch.nn.Conv2d(2, 2, 3),
        torch.nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0), torch.nn.LayerNorm(3), torch.nn.Upsample(2),
        torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 3)), torch.nn.CrossEntropyLoss(),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_modules_of_torch_are_taken(module):
    module.eval()
    before = identify(module)
    assert identify(copy.deepcopy(module)) == before
    for parameter in module.parameters():
        parameter.data.add_(1)
    after = identify(module)
    assert after.config_digest == before.config_digest
    assert (after.weights_digest != before.weights_digest) == bool(list(module.parameters()))


def test_autocast_and_the_precision_of_products_change_results(llama):
    before = identify(llama)
    with torch.autocast("cpu", torch.bfloat16):
        assert identify(llama).config_digest != before.config_digest
    assert identify(llama) == before


def test_compiled_code_rounds_otherwise(llama):
    plain, compiled = identify(llama), torch.compile(llama)
    seen = {identify(each).config_digest for each in (compiled, torch.nn.DataParallel(compiled))}
    assert len(seen | {plain.config_digest, identify(torch.nn.DataParallel(llama)).config_digest}) == 4
    assert identify(compiled).is_registered
    compiled.register_forward_hook(lambda *_: None)
    with pytest.raises(CacheError, match="OptimizedModule around"):
        identify(torch.nn.DataParallel(compiled))
    llama.model.layers[0].compile()
    assert identify(llama).config_digest != plain.config_digest


def test_only_what_is_new_is_read_by_blake3(llama, monkeypatch):
    hashed = []

    class Counted(contents.TensorHasher):
        def update(self, raw):
            hashed.append(len(raw))
            super().update(raw)

    monkeypatch.setattr(contents, "TensorHasher", Counted)
    identify(llama)
    assert hashed == [16]  # the frequencies of positions
    add_behind_the_counters(llama)
    identify(llama)
    assert len(hashed) > 10
    hashed.clear()
    identify(llama)
    assert hashed == []
    change_one_bit(llama)
    identify(llama)
    assert hashed == [llama.lm_head.weight.nbytes]


def test_nothing_changes_by_being_used_or_asked(llama):
    before = identify(llama)
    logits(llama)
    llama(input_ids=torch.ones(1, 4, dtype=torch.long), output_attentions=True, output_hidden_states=True)
    llama.generate(torch.ones(1, 4, dtype=torch.long), max_new_tokens=2)
    llama.zero_grad()
    assert identify(llama) == before
    llama.config._name_or_path = llama.name_or_path = "elsewhere"
    llama.config.use_cache = False
    llama.requires_grad_(False)
    assert identify(llama) == before


def test_a_change_that_is_taken_back_was_none(llama):
    before = identify(llama)
    weight = llama.lm_head.weight.data.clone()
    add_behind_the_counters(llama)
    llama.lm_head.weight.data.zero_()
    assert identify(llama) != before
    llama.lm_head.weight.data.copy_(weight)
    llama.model.norm.weight.data.sub_(1)
    assert identify(llama) == before


def test_counters_see_operations_and_not_what_goes_around_them(llama):
    before = identify(llama, changes="versions")
    add_behind_the_counters(llama)
    assert identify(llama, changes="versions") == before
    add_in_place(llama)
    seen = identify(llama, changes="versions")
    assert not seen.is_registered
    assert seen == identify(llama)


def test_a_new_tensor_at_an_old_place_is_seen_by_counters(llama):
    identify(llama, changes="versions")
    parameter = llama.lm_head.weight
    parameter.data.zero_()
    llama.lm_head.weight = torch.nn.Parameter(parameter.data)
    assert not identify(llama, changes="versions").is_registered


def test_inference_tensors_have_no_counters_and_are_read():
    with torch.inference_mode():
        model = tiny("llama")
        before = identify(model, changes="versions")
        model.model.norm.weight.add_(1)
        assert identify(model, changes="versions") != before


def test_only_two_ways_to_see_changes(llama):
    with pytest.raises(CacheError, match="'content' or by 'versions'"):
        identify(llama, changes="never")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "tied", "bert"])
def test_a_copy_is_told_by_its_own_content(kind):
    model = tiny(kind)
    remember_registered(model, MODEL_ID, DIGEST)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), tiny(kind)):
        own = identify(other)
        assert not own.is_registered
        assert own.config_digest == identify(model).config_digest
        assert own == identify(tiny(kind))
        assert own.weights_digest != identify(tiny(kind, seed=1)).weights_digest


def test_the_digest_is_the_one_the_database_would_have(session):
    for kind in ("gpt2", "llama", "bert"):
        model = tiny(kind)
        stored = save_state_dict(session, kind, model.config.to_dict(), model.state_dict())
        assert identify(model).weights_digest == stored.weights_digest


def test_nothing_is_left_in_the_module_or_of_it():
    model = tiny("gpt2")
    names, attributes = set(model.state_dict()), set(vars(model))
    identify(model)
    assert (set(model.state_dict()), set(vars(model))) == (names, attributes)
    del model
    gc.collect()
    count = len(identity._states)
    model = tiny("gpt2")
    identify(model)
    del model
    gc.collect()
    assert len(identity._states) == count


def test_buffers_of_any_module():
    torch.manual_seed(0)
    model = SmallTransformer().eval()
    before = identify(model)
    model.scale.data.mul_(2)
    persistent = identify(model)
    assert persistent.weights_digest != before.weights_digest
    assert persistent.config_digest == before.config_digest
    model.positions.data.mul_(2)
    assert identify(model).weights_digest == persistent.weights_digest
    assert identify(model).config_digest != persistent.config_digest


def add_forward_hook(model):
    model.model.layers[0].register_forward_hook(lambda *_: None)


def add_forward_pre_hook(model):
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: None)


def replace_forward(model):
    model.model.layers[0].forward = model.model.layers[1].forward


@pytest.mark.parametrize("change", [add_forward_hook, add_forward_pre_hook, replace_forward])
def test_code_that_was_put_in_is_refused(llama, change):
    before = identify(llama)
    change(llama)
    with pytest.raises(CacheError, match=r"'model\.layers\.0"):
        identify(llama)
    assert identify(llama, allow_hooks=True).weights_digest == before.weights_digest


def test_hooks_of_all_modules_are_refused(llama):
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(CacheError, match="all modules"):
            identify(llama)
    finally:
        handle.remove()
    assert identify(llama).is_registered


@pytest.mark.parametrize("model", [tiny("gpt2"), tiny("bert"), SmallTransformer(), torch.nn.BatchNorm1d(3)])
def test_random_and_changing_results_are_refused(model):
    model.train()
    with pytest.raises(CacheError, match="training mode"):
        identify(model)
    model.eval()
    identify(model)


def test_one_dropout_that_was_left_on_is_refused():
    model = tiny("bert")
    model.bert.encoder.layer[1].output.dropout.train()
    with pytest.raises(CacheError, match=r"layer\.1\.output\.dropout"):
        identify(model)


def test_training_mode_without_chance_is_taken(llama):
    identify(llama.train())


class WithState(torch.nn.Linear):
    def get_extra_state(self):
        return {"scale": 2}


class Odd(torch.nn.Parameter):
    pass


def test_what_no_memory_tells_is_refused():
    with pytest.raises(CacheError, match="no tensor"):
        identify(torch.nn.Sequential(WithState(2, 2)))
    module = torch.nn.Linear(2, 2)
    module.weight = Odd(torch.ones(2, 2))
    with pytest.raises(CacheError, match="Odd"):
        identify(module)
    with pytest.raises(TensorError, match="meta"):
        identify(torch.nn.Linear(2, 2, device="meta"))


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float32, "F32"), (torch.bfloat16, "BF16"), (torch.float16, "F16")], ids=str
)
def test_types_have_the_names_of_safetensors(dtype, name):
    assert identify(tiny("llama", dtype=dtype)).dtype == name


def test_modules_without_weights_and_with_empty_ones():
    assert identify(torch.nn.ReLU()).weights_digest == identify(torch.nn.GELU()).weights_digest
    assert identify(torch.nn.ReLU()).config_digest != identify(torch.nn.GELU()).config_digest
    empty = torch.nn.Module()
    empty.register_buffer("none", torch.empty(0, 3))
    empty.register_buffer("one", torch.tensor(1.0))
    assert identify(empty).weights_digest != identify(torch.nn.ReLU()).weights_digest


def test_an_identity_names_a_namespace(llama):
    known = identify(llama)
    blocks = namespace_of(known, kind="kv", layout="L2H2D8", block_token_count=16)
    assert (blocks.model_id, blocks.weights_digest, blocks.dtype) == (MODEL_ID, DIGEST, "F32")
    assert blocks.is_registered
    add_behind_the_counters(llama)
    changed = namespace_of(identify(llama), kind="kv", layout="L2H2D8", block_token_count=16)
    assert changed.digest != blocks.digest
    assert changed.model_id is None
    assert namespace_of(known, kind="activation", layout="x", dtype="F16").dtype == "F16"

"""Activations of torch modules: computed once, the same bits afterwards, and refused where they would not be."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from sqlalchemy import func, select, text
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaModel

from arc_halo.errors import CacheError
from arc_halo.inference.activations import ActivationCache
from arc_halo.integrations.torch_activations import cached_activations, to_transformer_lens
from arc_halo.integrations.torch_activations.capturing import Capture
from arc_halo.integrations.torch_identity import identify, namespace_of
from arc_halo.schema import CachedActivation

IDS = torch.arange(12).reshape(2, 6)
BLOCKS = ["transformer.h.0", "transformer.h.1.mlp.c_fc", "transformer.h.1"]


@pytest.fixture
def cache_of(database):
    """Makes caches of modules."""
    with ExitStack() as stack:

        def make(module):
            namespace = namespace_of(identify(module), kind="activation", layout="batch,token,width")
            return stack.enter_context(ActivationCache(database, namespace, flush_seconds=600))

        yield make


@pytest.fixture
def cache(cache_of, gpt2):
    return cache_of(gpt2)


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=32, vocab_size=64, attn_implementation="eager")
    return GPT2LMHeadModel(config).eval()


CALLS = weakref.WeakKeyDictionary()  # a count in a module would be a change of it


class Inplace(torch.nn.Module):
    """Writes into the output of its first layer, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x, scale=1.0):
        CALLS[self] = self.calls + 1
        return self.second(self.first(x).mul_(scale))

    @property
    def calls(self):
        return CALLS.get(self, 0)


def always_read(cache):
    """As if computing took long."""
    cache.flush()
    change = text("UPDATE arc_halo.activation_cache SET read_ms = NULL, recompute_ms = 1e9")
    cache._database.transaction(lambda session: session.execute(change) and None)


def hooks(module):
    return sum(isinstance(hook, Capture) for part in module.modules() for hook in part._forward_hooks.values())


def test_a_gpt2_is_run_once(cache, gpt2):
    expected = gpt2(IDS, output_hidden_states=True).hidden_states
    seen = []
    with cached_activations(cache, gpt2, BLOCKS) as run:
        for _ in range(2):
            seen.append(run(input_ids=IDS))
            always_read(cache)
    assert list(seen[0]) == BLOCKS
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in BLOCKS)
    assert torch.equal(seen[1]["transformer.h.0"], expected[1])
    assert seen[1]["transformer.h.1.mlp.c_fc"].shape == (2, 6, 64)
    assert hooks(gpt2) == 0


def test_outputs_are_those_before_anything_writes_into_them(cache_of):
    module = Inplace()
    cache = cache_of(module)
    x = torch.randn(3, 4)
    with cached_activations(cache, module, ["first"]) as run:
        for _ in range(2):
            assert torch.equal(run(x, scale=5.0)["first"], module.first(x))
            always_read(cache)
    assert module.calls == 1


def test_arguments_are_the_same_however_they_are_passed(cache_of):
    module, x = Inplace(), torch.randn(3, 4)
    cache = cache_of(module)
    with cached_activations(cache, module, ["second"]) as run:
        for args, kwargs in (((x, 2.0), {}), ((x,), {"scale": 2.0}), ((), {"scale": 2.0, "x": x.clone()})):
            run(*args, **kwargs)
            always_read(cache)
        assert module.calls == 1
        for other in ((x, 3.0), (x, 2), (x, 4.0), (x + 1, 2.0), (x.double().float() * 2, 2.0)):
            run(*other)
        assert module.calls == 6


def test_no_value_is_taken_for_another(cache_of):
    calls = []
    module = torch.nn.Sequential(torch.nn.Linear(1, 1))
    cache = cache_of(module)

    @cached_activations(cache, module, ["0"])
    def run(x, option):
        calls.append(option)
        module(x)

    ones = torch.ones(1)
    for option in 2 * [None, True, 1, 1.0, "1", [1], {"a": 1}, (ones,), {"a": ones}, {"b": 1}, {"a": 1, "b": 1}]:
        run(ones, option)
        always_read(cache)
    assert len(calls) == 11


def test_a_function_is_called_only_to_compute(cache, gpt2):
    calls = []

    @cached_activations(cache, gpt2, ["transformer.wte"])
    def embed(ids):
        """Look them up."""
        calls.append(ids)
        gpt2(ids)

    for _ in range(2):
        assert torch.equal(embed(IDS)["transformer.wte"], gpt2.transformer.wte(IDS))
        always_read(cache)
    assert len(calls) == 1
    assert embed.__doc__ == "Look them up."


def test_hooks_are_gone_after_an_error(cache, gpt2):
    with pytest.raises(IndexError), cached_activations(cache, gpt2, BLOCKS) as run:
        run(input_ids=IDS + 1000)
    assert hooks(gpt2) == 0
    with cache._database.session() as session:
        assert session.scalar(select(func.count()).select_from(CachedActivation)) == 0


@pytest.mark.parametrize("names", [["transformer.h.7"], [""], [], ["transformer.h.0", "h"]])
def test_a_name_must_be_that_of_a_submodule(cache, gpt2, names):
    with pytest.raises(CacheError):
        cached_activations(cache, gpt2, names)


class Drops(torch.nn.Module):
    def __init__(self, part, **rates):
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.part = part
        self.__dict__.update(rates)

    def forward(self, x):
        return self.part(self.first(x))


@pytest.mark.parametrize(
    "module",
    [
        Drops(torch.nn.Dropout(0.1)), Drops(torch.nn.RReLU()), Drops(torch.nn.BatchNorm1d(4)),
        Drops(torch.nn.Identity(), attention_dropout=0.1), Drops(torch.nn.AlphaDropout(0.5)),
    ],
    ids=["dropout", "rrelu", "batch norm", "a rate of its own", "alpha dropout"],
)  # fmt: skip
def test_what_draws_at_random_is_refused_in_training_mode_alone(cache_of, module):
    with cached_activations(cache_of(module.eval()), module, ["first"]) as run:
        module.train()
        with pytest.raises(CacheError, match="training mode"):
            run(torch.ones(2, 4))
        module.eval()
        run(torch.ones(2, 4))


def test_training_mode_without_dropout_is_no_harm(cache_of):
    module = Drops(torch.nn.Dropout(0.0), dropout=0.0).train()
    with cached_activations(cache_of(module), module, ["first"]) as run:
        assert run(torch.ones(2, 4))["first"].shape == (2, 4)


def test_hooks_of_others_are_refused(cache, gpt2):
    handle = gpt2.transformer.h[0].register_forward_hook(lambda *_: None)
    with cached_activations(cache, gpt2, BLOCKS) as run:
        with pytest.raises(CacheError, match="hooks"):
            run(IDS)
        handle.remove()
        run(IDS)


class Calls(Drops):
    """Calls its part twice, or never."""

    def forward(self, x):
        return self.part(self.part(x)) if isinstance(self.part, torch.nn.Linear) else x


@pytest.mark.parametrize("part", [torch.nn.Linear(4, 4), torch.nn.Identity()], ids=["twice", "never"])
def test_what_is_called_twice_or_never_has_no_output(cache_of, part):
    module = Calls(part)
    with cached_activations(cache_of(module), module, ["part"]) as run, pytest.raises(CacheError, match="times"):
        run(torch.ones(2, 4))


def change_in_place(module):
    with torch.no_grad():
        module.first.weight.add_(1)


def change_through_data(module):
    module.first.weight.data += 1


def change_config(module):
    module.config = {"scale": 2}


def replace_layer(module):
    module.first = torch.nn.Linear(4, 4)


@pytest.mark.parametrize("change", [change_in_place, change_through_data, change_config, replace_layer])
def test_a_changed_module_is_given_nothing_of_what_it_was(cache_of, change):
    module, x = Inplace(), torch.randn(3, 4)
    cache = cache_of(module)
    with cached_activations(cache, module, ["first"]) as run:
        run(x)
        always_read(cache)
        change(module)
        with pytest.raises(CacheError, match="changed"):
            run(x)
    with cached_activations(cache_of(module), module, ["first"]) as run:
        assert torch.equal(run(x)["first"], module.first(x))


def test_counters_are_trusted_if_that_is_asked_for(cache_of):
    module, x = Inplace(), torch.randn(3, 4)
    with cached_activations(cache_of(module), module, ["first"], changes="versions") as run:
        run(x)
        change_through_data(module)
        run(x)
        change_in_place(module)
        with pytest.raises(CacheError, match=r"changed .*weights"):
            run(x)


def test_what_changes_while_it_is_computed_is_not_kept(cache_of):
    module, x = Inplace(), torch.randn(3, 4)
    cache = cache_of(module)

    @cached_activations(cache, module, ["first"])
    def run(x):
        change_through_data(module)
        module(x)

    with pytest.raises(CacheError, match="changed"):
        run(x)
    with cache._database.session() as session:
        assert session.scalar(select(func.count()).select_from(CachedActivation)) == 0


def test_an_argument_that_cannot_be_compared_is_refused(cache, gpt2):
    with cached_activations(cache, gpt2, BLOCKS) as run, pytest.raises(CacheError, match="past_key_values"):
        run(IDS, past_key_values=object())


def test_autocast_is_part_of_the_key(cache_of):
    module, x = Inplace(), torch.randn(3, 4)
    with cached_activations(cache_of(module), module, ["second"]) as run:
        assert run(x)["second"].dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert run(x)["second"].dtype == torch.bfloat16
    assert module.calls == 2


def test_threads_that_share_a_module_have_their_own_outputs(cache_of):
    module = Inplace()
    barrier = threading.Barrier(4)
    inputs = [torch.randn(3, 4) for _ in range(16)]

    def ask(number):
        if number < 4:
            barrier.wait()
        return run(inputs[number])["first"]

    with cached_activations(cache_of(module), module, ["first"]) as run, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(16)))
    assert all(torch.equal(each, module.first(x)) for each, x in zip(found, inputs, strict=True))


@pytest.fixture
def without_lens(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformer_lens", None)


@pytest.mark.usefixtures("without_lens")
def test_gpt2_has_the_names_of_transformer_lens(cache, gpt2):
    names = [f"transformer.{name}" for name in ("wte", "drop", "h.0", "h.0.attn", "h.0.mlp", "h.1.ln_1", "h.1")]
    with cached_activations(cache, gpt2, names) as run:
        found = to_transformer_lens(run(IDS), gpt2)
    assert list(found) == [
        "hook_embed", "blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre",
        "blocks.0.hook_attn_out", "blocks.0.hook_mlp_out", "transformer.h.1.ln_1", "blocks.1.hook_resid_post",
    ]  # fmt: skip
    parts = ("blocks.0.hook_resid_pre", "blocks.0.hook_attn_out", "blocks.0.hook_mlp_out")
    torch.testing.assert_close(sum(found[part] for part in parts), found["blocks.0.hook_resid_post"])


@pytest.mark.usefixtures("without_lens")
def test_llama_has_the_names_of_transformer_lens(cache_of):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = LlamaModel(LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=64)).eval()
    names = ["embed_tokens", "layers.0", "layers.0.self_attn", "layers.0.mlp", "layers.0.mlp.up_proj", "norm"]
    with cached_activations(cache_of(llama), llama, names) as run:
        found = to_transformer_lens(run(IDS), llama)
    assert list(found)[-2:] == ["blocks.0.mlp.hook_pre_linear", "norm"]
    parts = ("blocks.0.hook_resid_pre", "blocks.0.hook_attn_out", "blocks.0.hook_mlp_out")
    torch.testing.assert_close(sum(found[part] for part in parts), found["blocks.0.hook_resid_post"])


@pytest.mark.usefixtures("without_lens")
def test_what_only_looks_like_llama_keeps_its_names():
    given = {"model.layers.0": torch.ones(1), "h.0": torch.ones(1)}
    assert to_transformer_lens(given, model_type="gemma2") == given
    assert list(to_transformer_lens(given, model_type="gpt2")) == ["model.layers.0", "blocks.0.hook_resid_post"]


def test_tensors_come_back_writable(cache_of):
    module = Inplace()
    cache = cache_of(module)
    with cached_activations(cache, module, ["first"]) as run:
        for _ in range(2):
            run(torch.ones(1, 4))["first"].add_(1)
            always_read(cache)
        assert np.allclose(run(torch.ones(1, 4))["first"].numpy(), module.first(torch.ones(1, 4)).detach().numpy())

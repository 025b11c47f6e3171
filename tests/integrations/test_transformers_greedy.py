"""A trained model goes on with restored keys and values as if it had computed all of them itself."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from arc_halo.integrations import transformers_cache
from arc_halo.integrations.torch import to_numpy
from arc_halo.integrations.transformers_cache import ModelCache
from arc_halo.integrations.transformers_layers import cache_argument, new_cache

FOLDER = Path(str(files("arc_halo"))) / "demo_model"
BLOCK, STEPS = 16, 12
# Where a recompute's best two tokens are as close as this, the order of its sums may decide between them.
CLEAR = 1e-3
TEXTS = """
Return a list of the names in the current local scope. If an object is given, return a sorted list of the names of its
attributes, and of the attributes of its class and of the bases of that class.

The list type is a mutable sequence. Lists may be constructed in several ways: with a pair of square brackets to denote
the empty list, with items separated by commas, or with a list comprehension over another iterable.

Raise ValueError if the value is not present. The search stops at the first element that is equal to the value; the
index is computed from the beginning of the full sequence and not from the argument where the search began.

def open_file(path, mode='r'):
    # Open a file and return a stream. The mode is a string that tells how the file is to be opened. It is open for
    # reading in text mode by default.
    if mode not in MODES:

Changed in version 3.11: the function now accepts keyword arguments. The connection is closed when the server does not
answer within the given timeout, and an exception of the type OSError is raised in the thread.
""".strip().split("\n\n")
# Tokens that are stored of a prompt; of a negative number, all but so many.
HITS = {"whole blocks": 2 * BLOCK, "inside a block": BLOCK + 5, "inside the first": 3, "one token short": -1}
STORED = [("none", True), ("none", False), ("lossless", True), ("lossless", False)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads cost more than they bring in matrices this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def prompts():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    found = [tokenizer(text, return_tensors="pt").input_ids for text in TEXTS]
    assert all(2 * BLOCK < row.shape[1] <= 128 - STEPS for row in found)
    return found


@cache
def model_of(dtype):
    """Shared by the tests, which do not change it."""
    return LlamaForCausalLM.from_pretrained(FOLDER, dtype=dtype).eval()


def compute(model, tokens, kept=None):
    """The logits after the last token; without a cache those of one forward over the whole sequence."""
    options = {"use_cache": False} if kept is None else {cache_argument(model): kept}
    with torch.inference_mode():
        return model(input_ids=tokens if kept is None else tokens[:, kept.get_seq_length() :], **options).logits[0, -1]


def continue_greedily(model, tokens, kept=None):
    """The logits of each step, and the text."""
    steps = []
    for _ in range(STEPS):
        steps.append(compute(model, tokens, kept))
        tokens = torch.cat([tokens, steps[-1].argmax().view(1, 1)], 1)
    return torch.stack(steps), tokens


@cache
def recomputed(number):
    """The greedy text of a prompt without any cache, as far as it is clear: [1, tokens]."""
    prompt = prompts()[number]
    steps, text = continue_greedily(model_of(torch.float32), prompt)
    best = steps.topk(2).values
    is_close = (best[:, 0] - best[:, 1] <= CLEAR).tolist()
    return text[:, : prompt.shape[1] + (is_close.index(True) if any(is_close) else STEPS)]


def test_the_text_of_most_prompts_is_clear_to_its_end_and_their_own():
    clear = [recomputed(number).shape[1] == row.shape[1] + STEPS for number, row in enumerate(prompts())]
    assert 2 * sum(clear) > len(TEXTS)
    answers = {tuple(recomputed(number)[0, row.shape[1] :].tolist()) for number, row in enumerate(prompts())}
    assert len(answers) == len(TEXTS)


def beginning(model, computed, count):
    """A cache in memory with the first tokens of another."""
    made = new_cache(model)
    for ours, theirs in zip(made.layers, computed.layers, strict=True):
        ours.update(theirs.keys[:, :, :count].clone(), theirs.values[:, :, :count].clone())
    return made


def content(kept):
    """The bytes of its keys and values."""
    return [to_numpy(each).tobytes() for layer in kept.layers for each in (layer.keys, layer.values)]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request):
    return model_of(request.param)


@pytest.fixture
def caches(database, model):
    """One for each way to store."""
    made = [
        ModelCache(
            database, model, block_token_count=BLOCK, codec=codec, logged=logged, salt=f"{codec}{logged}".encode()
        )
        for codec, logged in STORED
    ]
    yield made
    for each in made:
        each.close()


@pytest.mark.parametrize("hit", HITS.values(), ids=HITS)
def test_greedy_text_is_that_of_the_cache_in_memory_and_of_a_recompute(caches, model, hit):
    """In bfloat16 a recompute rounds elsewhere, by more than many a choice depends on; the cache in memory does not."""
    for number, prompt in enumerate(prompts()):
        prefix = prompt[:, :hit]
        expected = None
        for kept in caches:
            computed, _ = kept.restore(prefix)
            compute(model, prefix, computed)
            kept.store(computed, prefix)
            restored, found = kept.restore(prompt)
            in_memory = beginning(model, computed, prefix.shape[1])
            assert found == prefix.shape[1]
            assert content(restored) == content(in_memory)
            expected = continue_greedily(model, prompt, in_memory)[0] if expected is None else expected
            logits, text = continue_greedily(model, prompt, restored)
            assert torch.equal(logits, expected)
            if model.dtype == torch.float32:
                clear = recomputed(number)
                assert torch.equal(text[:, : clear.shape[1]], clear)


def test_generating_writes_the_text_of_a_recompute(database, monkeypatch):
    monkeypatch.setattr(transformers_cache, "_MEASURED_TOKENS", 1000)  # this model computes faster than it is read
    greedily = {"max_new_tokens": STEPS, "do_sample": False, "repetition_penalty": 1.0}
    with ModelCache(database, model_of(torch.float32), block_token_count=BLOCK) as kept:
        for number, prompt in enumerate(prompts()):
            clear = recomputed(number)
            for is_first in (True, False):
                made = kept.generate(prompt, **greedily)
                # All prompts begin with the same token.
                assert made.hit_token_count <= 1 if is_first else made.hit_token_count == prompt.shape[1] - 1
                length = min(made.sequences.shape[1], clear.shape[1])  # it may end before
                assert torch.equal(made.sequences[:, :length], clear[:, :length])

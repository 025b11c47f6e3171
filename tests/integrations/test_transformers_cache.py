"""Keys and values of live models: restored to the bit, and never those of what the model was before."""

import functools

import pytest
import torch
from sqlalchemy import func, select, update
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    DynamicCache,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MegatronBertConfig,
    MegatronBertForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from arc_halo import import_model
from arc_halo.errors import CacheError, CodecError, DiskFull, ReadOnlyDatabase, UnknownCacheLayer
from arc_halo.inference.kv import BreakEven, KVCache
from arc_halo.inference.kv.costs import Costs
from arc_halo.inference.sweeping import sweep_caches
from arc_halo.integrations.transformers_cache import ModelCache
from arc_halo.integrations.transformers_layers import cache_argument, new_cache
from arc_halo.integrations.transformers_models import load_pretrained
from arc_halo.integrations.transformers_rounding import rounding_divergence
from arc_halo.schema import CacheStatistics, KVCacheBlock, Model

VOCABULARY = 97
PROMPT = torch.arange(5, 45)[None] % VOCABULARY
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def make_llama(seed=0, **changes):
    torch.manual_seed(seed)
    config = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 48, **changes}
    return LlamaForCausalLM(LlamaConfig(**config)).eval()


def make_gpt2(seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(params=[make_gpt2, make_llama], ids=["gpt2", "llama"])
def model(request):
    return request.param()


@pytest.fixture
def cached(database):
    """Makes caches of models, with blocks of 16 tokens."""
    opened = []

    def make(model, **options):
        opened.append(ModelCache(database, model, **{"block_token_count": 16, **options}))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def compute(model, tokens, cache):
    """The logits of the tokens that a cache does not have yet."""
    with torch.inference_mode():
        return model(input_ids=tokens[:, cache.get_seq_length() :], **{cache_argument(model): cache}).logits


def fill(cached, model, tokens=PROMPT, **options):
    kept = cached(model, **options)
    cache, _ = kept.restore(tokens)
    logits = compute(model, tokens, cache)
    kept.store(cache, tokens)
    return kept, cache, logits


def test_keys_and_values_come_back_to_the_bit(cached, model):
    kept, computed, _ = fill(cached, model)
    restored, hit = kept.restore(PROMPT)
    assert hit == PROMPT.shape[1] - 1
    for ours, theirs in zip(computed.layers, restored.layers, strict=True):
        assert torch.equal(ours.keys[:, :, :hit], theirs.keys)
        assert torch.equal(ours.values[:, :, :hit], theirs.values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_follows_has_the_logits_of_the_cache_in_memory(cached, model, dtype):
    model = model.to(dtype)
    kept, computed, _ = fill(cached, model)
    restored, hit = kept.restore(PROMPT)
    question = torch.cat([PROMPT[:, :hit], torch.tensor([[3, 1, 4]])], 1)
    in_memory = new_cache(model)
    for ours, theirs in zip(in_memory.layers, computed.layers, strict=True):
        keys, values = (each[:, :, :hit].clone() for each in (theirs.keys, theirs.values))
        ours.update(keys, values)
    assert torch.equal(compute(model, question, restored), compute(model, question, in_memory))


def test_generating_twice_computes_the_prompt_once(cached, model):
    kept = cached(model)
    first = kept.generate(PROMPT, max_new_tokens=6, do_sample=False, pad_token_id=0)
    again = kept.generate(PROMPT, max_new_tokens=6, do_sample=False, pad_token_id=0)
    expected = model.generate(PROMPT, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert (first.hit_token_count, again.hit_token_count) == (0, PROMPT.shape[1] - 1)
    assert torch.equal(first.sequences, expected)
    assert torch.equal(again.sequences, expected)
    assert again.new_tokens.tolist() == expected[0, PROMPT.shape[1] :].tolist()
    assert 0 < again.first_token_seconds <= again.seconds


def test_the_time_saved_is_that_of_this_call(cached, model, monkeypatch):
    kept = cached(model)
    options = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
    assert kept.generate(PROMPT, **options).seconds_saved is None  # nothing was found
    monkeypatch.setattr(kept.current(), "_costs", Costs(BreakEven(1, 1e9, None)))
    assert kept.generate(PROMPT, **options).seconds_saved is None  # nothing was measured
    for rate, is_saved in ((1e-3, True), (1e9, False)):
        monkeypatch.setattr(kept.current(), "_costs", Costs(BreakEven(1, 1e12, rate)))
        made = kept.generate(PROMPT, **options)
        assert (made.hit_token_count, made.seconds_saved > 0) == (PROMPT.shape[1] - 1, is_saved)
        assert -made.first_token_seconds < made.seconds_saved - made.hit_token_count / rate < 0


def test_a_token_that_pads_elsewhere_is_one_of_the_prompt(cached, model):
    tokens = torch.tensor([[5, 0, 7, 0, 0, 9, 3, 0, 2, 8]])
    kept = cached(model)
    kept.generate(tokens, max_new_tokens=1, do_sample=False, pad_token_id=0)
    restored, hit = kept.restore(tokens)
    computed = new_cache(model)
    compute(model, tokens, computed)
    assert hit == tokens.shape[1] - 1
    for ours, theirs in zip(computed.layers, restored.layers, strict=True):
        torch.testing.assert_close(ours.keys[:, :, :hit], theirs.keys)
        torch.testing.assert_close(ours.values[:, :, :hit], theirs.values)


@pytest.mark.parametrize("mask", [torch.ones(1, 40), torch.full((1, 40), 2)], ids=["ones", "twos"])
def test_a_mask_without_padding_changes_nothing(cached, model, mask):
    kept = cached(model)
    masked = kept.generate(PROMPT, max_new_tokens=3, do_sample=False, pad_token_id=0, attention_mask=mask)
    assert torch.equal(masked.sequences, model.generate(PROMPT, max_new_tokens=3, do_sample=False, pad_token_id=0))


def test_a_config_of_the_callers_is_followed_and_left_as_it_is(cached, model, caplog):
    config = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0, use_cache=False)
    made = cached(model).generate(PROMPT, generation_config=config)
    assert len(made.new_tokens) == 3
    assert torch.equal(made.sequences, model.generate(PROMPT, generation_config=config))
    assert config.use_cache is False
    assert "deprecated" not in caplog.text


def test_a_conversation_keeps_its_answers(cached, model):
    kept = cached(model)
    first = kept.generate(PROMPT, keep="all", max_new_tokens=6, do_sample=False, pad_token_id=0)
    follow_up = torch.cat([first.sequences, torch.tensor([[7, 7]])], 1)
    assert kept.generate(follow_up, max_new_tokens=1, pad_token_id=0).hit_token_count == first.sequences.shape[1] - 1
    kept.generate(torch.tensor([[9, 8, 7]]), keep="nothing", max_new_tokens=1, pad_token_id=0)
    assert kept.restore(torch.tensor([[9, 8, 7]]))[1] == 0


def change_in_place(model):
    with torch.no_grad():
        model.lm_head.weight[3, 3] += 1


def change_through_data(model):
    next(model.parameters()).data.add_(1e-3)


def change_by_optimizer(model):
    model(input_ids=PROMPT, labels=PROMPT).loss.backward()
    torch.optim.SGD(model.parameters(), 1e-3).step()


def change_rope(model):
    model.model.rotary_emb.inv_freq.mul_(0.5)


def change_config(model):
    model.config.rms_norm_eps = 1e-2


@pytest.mark.parametrize(
    "change", [change_in_place, change_through_data, change_by_optimizer, change_rope, change_config]
)
def test_a_changed_model_does_not_see_what_it_was(cached, change):
    model = make_llama()
    kept, _, _ = fill(cached, model)
    change(model)
    assert kept.restore(PROMPT)[1] == 0


def test_what_is_found_of_a_model_that_was_changed_since_is_no_hit(database, cached):
    model = make_llama()
    kept, _, _ = fill(cached, model)
    change_in_place(model)
    kept.restore(PROMPT)
    kept.close()
    with database.session() as session:
        assert session.scalars(select(CacheStatistics.hit_count)).all() == [0]


def test_a_cache_of_the_model_before_it_was_changed_is_not_stored(cached, model):
    kept = cached(model)
    cache, _ = kept.restore(PROMPT)
    compute(model, PROMPT, cache)
    change_in_place(model)
    with pytest.raises(CacheError, match="changed"):
        kept.store(cache, PROMPT)
    other = DynamicCache(config=model.config)
    compute(model, PROMPT, other)
    with pytest.raises(CacheError, match="not begun"):
        kept.store(other, PROMPT)


def test_a_cache_is_stored_with_the_tokens_that_it_was_begun_with(cached, model):
    kept, cache, _ = fill(cached, model)
    with pytest.raises(CacheError, match="not the tokens"):
        kept.store(cache, PROMPT + 1)
    longer = torch.cat([PROMPT, torch.tensor([[3, 1]])], 1)
    compute(model, longer, cache)
    assert kept.store(cache, longer).token_count == longer.shape[1]


def test_other_models_tokenizers_and_tenants_see_nothing(cached):
    fill(cached, make_llama())
    for other in (
        cached(make_llama(seed=1)),
        cached(make_llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})),
        cached(make_llama().to(torch.bfloat16)),
        cached(make_llama(), salt=b"tenant"),
        cached(make_llama(), codec="int8"),
        cached(make_llama(), block_token_count=32),
    ):
        assert other.restore(PROMPT)[1] == 0
    assert cached(make_llama()).restore(PROMPT)[1] == PROMPT.shape[1] - 1


@pytest.fixture
def stored(database, tmp_path):
    """A version in the database, and the model loaded from there."""
    make_llama().save_pretrained(tmp_path / "lm")
    with database.session() as session, session.begin():
        import_model(session, tmp_path / "lm", name="lm")
    with database.session() as session:
        return load_pretrained(session, "lm@1")


@pytest.mark.parametrize("status", ["archived", "deployed"])
def test_a_retired_version_is_served_nothing_from_the_commit_on(database, cached, stored, status):
    kept, _, _ = fill(cached, stored)
    kept.restore(PROMPT)
    assert kept.current().namespace.is_registered
    with database.session() as session, session.begin():
        session.execute(update(Model).values(status=status))
        assert kept.restore(PROMPT)[1] == PROMPT.shape[1] - 1  # not yet committed
    served = 0 if status == "archived" else PROMPT.shape[1] - 1
    assert kept.restore(PROMPT)[1] == served
    sweep_caches(database)
    with database.session() as session:
        assert session.scalar(select(func.count()).select_from(KVCacheBlock)) == (0 if status == "archived" else 3)


def test_models_that_keep_something_else_than_keys_and_values_are_refused(cached):
    config = MistralConfig(**SIZES, num_key_value_heads=2, intermediate_size=48, sliding_window=8)
    with pytest.raises(UnknownCacheLayer, match="DynamicSlidingWindowLayer"):
        cached(MistralForCausalLM(config).eval())


BERT = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "is_decoder": True,
}


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM, BertLMHeadModel, MegatronBertForCausalLM])
def test_encoders_are_refused(cached, kind):
    config = MegatronBertConfig if kind is MegatronBertForCausalLM else BertConfig
    with pytest.raises(CacheError, match="keys of an encoder depend on tokens after them"):
        cached(kind(config(**BERT)).eval())


def test_a_model_that_is_made_an_encoder_is_refused(cached, model):
    kept = cached(model)
    model.config.is_causal = False
    with pytest.raises(CacheError, match="encoder"):
        kept.restore(PROMPT)


@pytest.mark.parametrize(
    "decoder",
    [
        lambda: BertLMHeadModel(BertConfig(**BERT, is_decoder=True, add_cross_attention=True)),
        lambda: BartForCausalLM(BartConfig(**BART)),
        lambda: BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)),
        lambda: make_gpt2().base_model,
        lambda: make_llama().base_model,
    ],
    ids=["bert", "bart", "bloom", "gpt2 without a head", "llama without a head"],
)
def test_decoders_of_every_make_are_none(cached, decoder):
    assert cached(decoder().eval()).restore(PROMPT)[1] == 0


FACTORS = {"short_factor": 4 * [1.0], "long_factor": 4 * [2.0], "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    "rope", [{"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "longrope", "factor": 2.0, **FACTORS}],
    ids=lambda rope: rope["rope_type"],
)  # fmt: skip
def test_positions_that_depend_on_what_follows_are_refused(cached, rope):
    changes = {"rope_parameters": {**rope, "rope_theta": 10000.0}, "max_position_embeddings": 64}
    with pytest.raises(CacheError, match="length of all that follows"):
        cached(make_llama(**changes))
    model = make_llama()
    kept = cached(model)
    model.config.rope_parameters = changes["rope_parameters"]
    with pytest.raises(CacheError, match="length of all that follows"):
        kept.restore(PROMPT)


def test_positions_of_each_kind_of_layer_are_looked_at():
    model = make_llama()
    model.model.rotary_emb.rope_type = {"full_attention": "default", "sliding_attention": "dynamic"}
    with pytest.raises(CacheError, match="'dynamic'"):
        new_cache(model)
    model.model.rotary_emb.rope_type = "default"
    model.config.rope_parameters = {"full_attention": {"rope_type": "longrope"}}
    with pytest.raises(CacheError, match="'longrope'"):
        new_cache(model)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"num_return_sequences": 2, "do_sample": True},
        {"past_key_values": DynamicCache()},
        {"cache_implementation": "static"},
        {"attention_mask": torch.zeros(1, 40)},
        {"pixel_values": torch.zeros(1)},
        {"return_dict_in_generate": True},
        {"custom_generate": print},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_makes_other_keys_and_values_than_the_tokens_is_refused(cached, options):
    with pytest.raises(CacheError):
        cached(make_llama()).generate(PROMPT, max_new_tokens=1, **options)


CONFIGS = [
    {"num_beams": 2},
    {"num_return_sequences": 2, "do_sample": True},
    {"return_dict_in_generate": True},
    {"cache_implementation": "static"},
    {"prompt_lookup_num_tokens": 2},
]


@pytest.mark.parametrize("values", CONFIGS, ids=lambda values: next(iter(values)))
def test_what_configs_say_is_looked_at_as_the_call_is(cached, values):
    model = make_llama()
    kept = cached(model)
    with pytest.raises(CacheError, match=next(iter(values))):
        kept.generate(PROMPT, generation_config=GenerationConfig(max_new_tokens=1, **values))
    model.generation_config = GenerationConfig(pad_token_id=0, **values)
    with pytest.raises(CacheError, match=next(iter(values))):
        kept.generate(PROMPT, max_new_tokens=1)


def test_the_call_overrules_the_configs(cached):
    model = make_llama()
    model.generation_config = GenerationConfig(pad_token_id=0, num_beams=2)
    assert len(cached(model).generate(PROMPT, max_new_tokens=1, num_beams=1).new_tokens) == 1


class Virtual(LlamaForCausalLM):
    """Puts a token of its own before each prompt, or before each token."""

    is_on = False

    @functools.wraps(LlamaForCausalLM.forward)  # transformers reads the names of its arguments
    def forward(self, input_ids=None, **options):
        options.pop("attention_mask", None)
        options.pop("position_ids", None)
        if type(self).is_on and input_ids.shape[1] > 1:
            input_ids = torch.cat([torch.zeros_like(input_ids[:, :1]), input_ids], 1)
        elif type(self).is_on is None:
            input_ids = torch.cat([input_ids, input_ids], 1)
        return super().forward(input_ids=input_ids, **options)


@pytest.fixture
def virtual():
    torch.manual_seed(0)
    return Virtual(LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=48)).eval()


@pytest.mark.parametrize("keep", ["prompt", "all"])
def test_what_has_tokens_of_its_own_is_answered_and_not_stored(cached, virtual, monkeypatch, caplog, keep):
    kept = cached(virtual)
    monkeypatch.setattr(Virtual, "is_on", True)
    assert len(kept.generate(PROMPT, keep=keep, max_new_tokens=2, pad_token_id=0).new_tokens) == 2
    assert "nothing was stored" in caplog.text
    assert kept.restore(PROMPT)[1] == 0


def test_what_computes_more_than_it_is_given_is_refused(cached, virtual, monkeypatch):
    monkeypatch.setattr(Virtual, "is_on", None)
    with pytest.raises(CacheError, match="virtual tokens"):
        cached(virtual)


def test_of_many_changes_the_newest_are_kept(cached, monkeypatch):
    closed = []
    close = KVCache.close
    monkeypatch.setattr(KVCache, "close", lambda self: (closed.append(self), close(self)))
    model = make_llama()
    kept = cached(model)
    seen = [kept.current()]
    for _ in range(6):
        change_through_data(model)
        seen.append(kept.current())
    assert closed == seen[:3]
    assert kept.current() is seen[-1]
    assert kept.generate(PROMPT, max_new_tokens=1, pad_token_id=0).hit_token_count == 0


@pytest.mark.parametrize("error", [DiskFull, ReadOnlyDatabase, CodecError])
def test_trouble_with_storing_takes_no_answer_away(cached, model, monkeypatch, caplog, error):
    def fail(*_, **__):
        raise error("no room")

    monkeypatch.setattr(KVCache, "store", fail)
    kept = cached(model)
    assert len(kept.generate(PROMPT, max_new_tokens=3, pad_token_id=0).new_tokens) == 3
    assert "were not stored: no room" in caplog.text
    cache, _ = kept.restore(PROMPT)
    compute(model, PROMPT, cache)
    with pytest.raises(error):
        kept.store(cache, PROMPT)


def test_what_no_eight_bits_can_say_is_answered(cached, caplog):
    model = make_llama()
    model.model.layers[1].self_attn.k_proj.weight.data[0, 0] = torch.inf
    kept = cached(model, codec="int8")
    assert len(kept.generate(PROMPT, max_new_tokens=1, do_sample=False, pad_token_id=0).new_tokens) == 1
    assert "were not stored" in caplog.text


@pytest.mark.parametrize("shape", [(2, 4), (4,), (1, 0)])
def test_one_row_of_tokens_at_a_time(cached, shape):
    with pytest.raises(CacheError, match="one row"):
        cached(make_llama()).restore(torch.zeros(shape, dtype=torch.long))


def test_tokens_are_a_tensor(cached):
    kept = cached(make_llama())
    for call in (kept.restore, kept.generate):
        with pytest.raises(CacheError, match=r"a tensor of shape \[1, tokens\], not of list"):
            call([[1, 2]])


def test_options_that_make_no_sense_are_refused_before_anything_is_computed(cached, monkeypatch):
    model = make_llama()
    kept = cached(model)
    monkeypatch.setattr(model, "forward", None)
    with pytest.raises(CacheError, match="none, lossless and int8"):
        cached(model, codec="zip")
    with pytest.raises(CacheError, match="prompt, all, nothing"):
        kept.generate(PROMPT, keep="bogus")
    with pytest.raises(CacheError, match="give bytes"):
        cached(make_llama(), salt="alice")


def test_under_autocast_nothing_is_cached(cached):
    kept = cached(make_llama())
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(CacheError, match="autocast"):
        kept.restore(PROMPT)


def test_eight_bits_are_a_quarter_of_the_bytes_and_nearly_the_same(database, cached, model):
    exact, _, _ = fill(cached, model)
    rounded, _, _ = fill(cached, model, codec="int8")
    with database.session() as session:
        sizes = session.scalars(
            select(func.sum(KVCacheBlock.stored_nbytes))
            .group_by(KVCacheBlock.namespace_id)
            .order_by(KVCacheBlock.namespace_id)
        ).all()
    assert 100 * sizes[1] < 35 * sizes[0]
    assert rounded.restore(PROMPT)[1] == exact.restore(PROMPT)[1] == PROMPT.shape[1] - 1
    divergence = rounding_divergence(model, PROMPT, prefix_token_count=24, block_token_count=16)
    assert 0 < divergence.mean_nats < 1e-3
    assert divergence.top_agreement > 0.9

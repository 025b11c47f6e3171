"""Models as members: logits of a full computation, answers of ``generate``, and little is computed twice."""

import random
import threading
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from sqlalchemy import func, select
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from arc_halo import import_model
from arc_halo.errors import FusionError, MemberError, MemberTimeout, UnknownCacheLayer
from arc_halo.fusion.members import Answering, Predicting, Question, Stoppable, level_of
from arc_halo.fusion.reactor import Reactor
from arc_halo.integrations import transformers_members as module
from arc_halo.integrations.transformers_members import TransformersMember, load_member, transformers_members
from arc_halo.integrations.transformers_models import load_pretrained
from arc_halo.registry import find_model
from arc_halo.schema import FusionOperationMember, KVCacheBlock, Model, ReactorModel
from tests.fusion.reactors import store_reactor

FOLDER = Path(str(files("arc_halo"))) / "demo_model"
PROMPT = "Return a list of the names in the current local scope. If an object is given, return"
QUESTION = Question(PROMPT, max_tokens=12, top_count=3)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def small(seed=0, words=4096):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=words, n_embd=32, n_layer=2, n_head=4, n_positions=128)).eval()


@pytest.fixture
def stored(database):
    """The demo model, as ``lm@1``."""
    with database.session() as session:
        import_model(session, FOLDER, name="lm", embeddings=False)
        session.commit()
    return database


@pytest.fixture
def demo(stored):
    with load_member(stored, "lm@1", dtype=torch.float32, cache=False) as member:
        yield member


def whole(model, token_ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([token_ids])).logits[0, -1].float().numpy()


class Counted:
    """How many tokens the model computed."""

    def __init__(self, model):
        self.count = 0
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _module, _args, kwargs):
        self.count += kwargs["input_ids"].shape[1]


def note_computed(member):
    """How many tokens are computed each time; a hook would make it another model."""
    counts, compute = [], member._held._compute

    def noted(tokens, sequence):
        counts.append(len(tokens) - len(sequence.token_ids))
        return compute(tokens, sequence)

    member._held._compute = noted
    return counts


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("is_cached", [True, False], ids=["database", "memory"])
def test_logits_are_those_of_a_full_computation(database, tokenizer, seed, is_cached):
    model, chance = small(seed), random.Random(seed)
    tokens = [chance.randrange(4096) for _ in range(30)]
    with TransformersMember(database, model, tokenizer, cache=is_cached, block_token_count=16) as member:
        for _ in range(40):
            match chance.choice(["extend", "extend", "crop", "replace", "many", "anew"]):
                case "extend":
                    tokens = [*tokens, chance.randrange(4096)]
                case "crop":
                    tokens = tokens[: max(1, len(tokens) - chance.randrange(12))]
                case "replace":
                    tokens = [*tokens[: chance.randrange(len(tokens) + 1)], chance.randrange(4096)]
                case "many":
                    tokens = [*tokens, *(chance.randrange(4096) for _ in range(20))]
                case "anew":
                    tokens = [chance.randrange(4096) for _ in range(chance.randrange(1, 60))]
            tokens = tokens[-120:]
            np.testing.assert_allclose(member.next_logits(tokens), whole(model, tokens), atol=1e-4)


def test_only_what_is_new_is_computed(database, tokenizer):
    model = small()
    with TransformersMember(database, model, tokenizer, cache=False) as member:
        counted = Counted(model)
        tokens = list(range(40))
        member.next_logits(tokens)
        assert counted.count == 40
        member.next_logits([*tokens, 7])
        member.next_logits([*tokens, 7, 8])
        assert counted.count == 42
        member.next_logits([*tokens, 9])  # two taken back
        assert counted.count == 43
        member.next_logits([*tokens[:20], *range(90, 100)])  # another, beside the first
        assert counted.count == 53
        member.next_logits([*tokens, 9, 1])
        assert counted.count == 54


def test_a_greedy_answer_is_that_of_generate(demo):
    answer = demo.answer(QUESTION)
    ids = torch.tensor([demo.encode(PROMPT)])
    made = demo.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, repetition_penalty=1.0
    )
    assert answer.text == demo.decode(made[0, ids.shape[1] :].tolist())
    assert (answer.prompt_token_count, answer.generated_token_count) == (ids.shape[1], 12)
    assert (answer.finish_reason, answer.cached_token_count) == ("length", 0)
    assert "".join(each.text for each in answer.choices) == answer.text
    assert all(next(iter(each.top)) == each.text and len(each.top) == 3 for each in answer.choices)
    scores = torch.log_softmax(demo.model(made[:, :-1]).logits[0, ids.shape[1] - 1 :].float(), -1)
    expected = scores.gather(1, made[0, ids.shape[1] :, None])[:, 0].tolist()
    assert [each.log_probability for each in answer.choices] == pytest.approx(expected, abs=1e-4)


def test_it_is_all_that_a_member_may_be(demo):
    assert level_of(demo) == "N"
    assert isinstance(demo, Answering)
    assert isinstance(demo, Predicting)
    assert isinstance(demo, Stoppable)
    assert demo.end_ids == {1}


def test_equal_seeds_draw_equal_answers(demo):
    drawn = [demo.answer(Question(PROMPT, max_tokens=10, temperature=1.0, seed=seed)).text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_answer_ends_where_positions_do(demo):
    answer = demo.answer(Question(PROMPT, max_tokens=10_000, top_count=0))
    assert answer.prompt_token_count + answer.generated_token_count <= 128
    with pytest.raises(MemberError, match="128 positions"):
        demo.answer(Question(PROMPT * 20))


@pytest.mark.parametrize(
    ("tokens", "said"),
    [([], "at least one"), ([4096], "from 0 to 4095"), ([-1], "from 0"), ([1] * 129, "positions")],
)
def test_tokens_that_it_cannot_take_are_its_error(demo, tokens, said):
    with pytest.raises(MemberError, match=said):
        demo.next_logits(tokens)
    assert demo.next_logits([0, 5]).shape == (4096,)


def test_nobody_waits_and_it_stops(demo):
    left = iter([True, True, False])
    with pytest.raises(MemberTimeout, match="after 2 tokens"):
        demo.answer_while(QUESTION, lambda: next(left))


def test_a_second_process_has_the_prompt_from_the_database(stored):
    with load_member(stored, "lm@1", block_token_count=16) as first:
        told = first.answer(QUESTION)
    with load_member(stored, "lm@1", block_token_count=16) as second:
        computed = note_computed(second)
        again = second.answer(QUESTION)
    assert (told.cached_token_count, again.cached_token_count) == (0, told.prompt_token_count - 1)
    assert again.text == told.text
    assert set(computed) == {1}
    with load_member(stored, "lm@1", block_token_count=16, salt=b"another tenant") as third:
        assert third.answer(QUESTION).cached_token_count == 0


def test_weights_that_are_changed_in_place_are_seen(database, tokenizer):
    model = small()
    tokens = list(range(40))
    with TransformersMember(database, model, tokenizer, block_token_count=16) as member:
        before = member.next_logits(tokens)
        with torch.no_grad():
            model.transformer.h[0].mlp.c_fc.weight.mul_(1.5)
        after = member.next_logits([*tokens])
        np.testing.assert_allclose(after, whole(model, tokens), atol=1e-4)
        assert not np.allclose(before, after, atol=1e-3)
    with database.session() as session:
        assert session.scalar(select(func.count(KVCacheBlock.namespace_id.distinct()))) == 2


def test_trouble_with_the_database_costs_time_alone(database, tokenizer, monkeypatch, caplog):
    model = small()
    with TransformersMember(database, model, tokenizer, block_token_count=16) as member:

        def broken(*_args, **_options):
            raise FusionError("no disk")

        monkeypatch.setattr(member._cache, "restore", broken)
        monkeypatch.setattr(member._cache, "store", broken)
        np.testing.assert_allclose(member.next_logits(list(range(40))), whole(model, list(range(40))), atol=1e-4)
    assert "were not looked up: no disk" in caplog.text


def test_layers_with_a_window_are_computed_each_time(database, tokenizer):
    torch.manual_seed(0)
    sizes = {"vocab_size": 4096, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = MistralForCausalLM(
        MistralConfig(**sizes, num_key_value_heads=2, intermediate_size=48, sliding_window=8)
    ).eval()
    with pytest.raises(UnknownCacheLayer):
        TransformersMember(database, model, tokenizer)
    with TransformersMember(database, model, tokenizer, cache=False) as member:
        for end in (20, 21, 15, 30):
            np.testing.assert_allclose(member.next_logits(list(range(end))), whole(model, list(range(end))), atol=1e-4)


def test_several_threads_get_their_own_answers(demo):
    prompts = [
        PROMPT,
        "The list type is a mutable",
        "Raise ValueError if",
        "def open_file(path",
        "Changed in",
        "import",
    ]
    expected = [demo.answer(Question(each, max_tokens=10)).text for each in prompts]
    found = {}

    def ask(number):
        found[number] = demo.answer(Question(prompts[number], max_tokens=10)).text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [found[number] for number in range(len(prompts))] == expected


def reactor_of(database, *versions):
    """A reactor with a member for each of these versions."""
    with database.session() as session:
        ids = [find_model(session, each).id for each in versions]
    store_reactor(database, {f"m{number}": {"endpoint": None, "model_id": each} for number, each in enumerate(ids)})


def test_a_reactor_shares_what_it_loads(stored, monkeypatch):
    loaded = []

    def load(session, reference, **options):
        loaded.append(reference.name)
        return load_pretrained(session, reference, **options)

    monkeypatch.setattr(module, "load_pretrained", load)
    reactor_of(stored, "lm@1", "lm@1")
    with transformers_members(stored, block_token_count=16) as models:
        reactor = Reactor(stored, "reactor", models)
        first, again = reactor.run({"prompt": PROMPT}, seed=1), reactor.run({"prompt": PROMPT}, seed=1)
    assert len(loaded) == 1
    assert first.text == again.text
    assert [call.status for call in again.calls] == ["answered", "answered"]
    assert all(call.answer.cached_token_count > 0 for call in again.calls)
    with stored.session() as session:
        rows = session.scalars(select(FusionOperationMember)).all()
        digest = session.scalar(select(Model.weights_digest))
        assert {row.weights_digest for row in rows} == {digest}
        assert all(row.cached_token_count is not None for row in rows)


def test_a_member_that_gets_another_version_answers_with_its_weights(stored, tmp_path):
    other = AutoModelForCausalLM.from_pretrained(FOLDER)
    with torch.no_grad():
        other.model.norm.weight.mul_(-1)
    other.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    with stored.session() as session:
        import_model(session, tmp_path, name="lm", embeddings=False)
        session.commit()
    reactor_of(stored, "lm@1")
    with transformers_members(stored) as models:
        reactor = Reactor(stored, "reactor", models)
        before = reactor.run(PROMPT, seed=1)
        with stored.session() as session:
            session.scalars(select(ReactorModel)).one().model_id = find_model(session, "lm@2").id
            session.commit()
        after = reactor.run(PROMPT, seed=1)
    assert before.text != after.text
    with stored.session() as session:
        rows = session.execute(
            select(FusionOperationMember.operation_id, FusionOperationMember.weights_digest, Model.version).join(
                Model, Model.id == FusionOperationMember.model_id
            )
        ).all()
        digests = {each: find_model(session, f"lm@{each}").weights_digest for each in ("1", "2")}
    assert {(row[0], row[1]) for row in rows} == {
        (before.operation_id, digests["1"]),
        (after.operation_id, digests["2"]),
    }
    assert len({*digests.values()}) == 2


def test_weights_that_are_not_those_of_the_plan_are_refused(stored):
    with pytest.raises(FusionError, match="weights of lm@1 were changed"):
        load_member(stored, "lm@1", weights_digest=bytes(32))


def test_members_without_a_model_are_left_to_others(stored):
    store_reactor(stored, {"elsewhere": {}})
    with transformers_members(stored) as models:
        reactor = Reactor(stored, "reactor", lambda plan: models(plan) or (lambda _: "mine"))
        assert reactor.run("?").text == "mine"

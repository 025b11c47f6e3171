"""``arc-halo infer generate``, and texts for ``arc-halo cache``: models and tokenizers straight from the database."""

from __future__ import annotations

import shlex
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from sqlalchemy import func, select, update
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    BertModel,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTModel,
)

from arc_halo import connect
from arc_halo.registry import import_model, quantize_model
from arc_halo.schema import (
    CacheStatistics,
    InferenceMetric,
    InferenceSession,
    KVCacheBlock,
    KVCacheUnloggedPayload,
    Model,
)
from tests.cli.command_line import arc_halo
from tests.docs.pages import COMMAND_LINE, blocks
from tests.fixtures.tiny_models import WORDS, tiny

__all__ = ["arc_halo"]

pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries warn of is not ours

PROMPT = "w3 w1 w4 w1 w5 w9 w2 w6"
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
OPTIONS = ("--max-new-tokens", 6, "--block-tokens", 4)


def folder_of(path, kind="llama", seed=0, *, has_tokenizer=True):
    tiny(kind, seed).save_pretrained(path)
    if has_tokenizer:
        inner = Tokenizer(WordLevel({f"w{number}": number for number in range(WORDS)}, unk_token="w0"))
        inner.pre_tokenizer = Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(path)
    return path


@pytest.fixture
def database(migrated_url):
    with connect(migrated_url) as found:
        yield found


@pytest.fixture
def put(database, tmp_path):
    """Imports a model as the next version of ``lm``."""

    def imported(kind="llama", seed=0, **options):
        folder = folder_of(tmp_path / f"{kind}-{seed}-{len(options)}", kind, seed, **options)
        database.transaction(lambda session: import_model(session, folder, name="lm", embeddings=False))
        return folder

    return imported


def expected(folder, count=6):
    """What transformers makes of the folder."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        return model.generate(torch.tensor([TOKENS]), max_new_tokens=count, do_sample=False)[0, len(TOKENS) :].tolist()


def asked(arc_halo, *options):
    return arc_halo.json("infer", "generate", "lm", "--prompt", PROMPT, *OPTIONS, *options)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_second_time_it_hits(arc_halo, put, kind):
    tokens = expected(put(kind))
    first, second = asked(arc_halo), asked(arc_halo)
    assert (first["tokens"], second["tokens"]) == (tokens, tokens)
    assert (first["cached_token_count"], second["cached_token_count"]) == (0, len(TOKENS) - 1)
    assert first["model"] == "lm@1"
    assert second["text"].split() == [f"w{token}" for token in tokens]
    assert second["read_nbytes_per_second"] > 0


def test_another_model_in_between_misses(arc_halo, put):
    put(seed=0)
    asked(arc_halo)
    other = put(seed=1)
    missed = asked(arc_halo)
    assert (missed["model"], missed["cached_token_count"]) == ("lm@2", 0)
    assert missed["tokens"] == expected(other)
    again = arc_halo.json("infer", "generate", "lm@1", "--prompt", PROMPT, *OPTIONS)
    assert again["cached_token_count"] == len(TOKENS) - 1


def test_of_an_archived_version_nothing_is_read(arc_halo, put, database):
    put()
    asked(arc_halo)
    database.transaction(lambda session: session.execute(update(Model).values(status="archived")))
    assert asked(arc_halo)["cached_token_count"] == 0


def test_the_answer_is_on_stdout_and_what_it_took_on_stderr(arc_halo, put):
    tokens = expected(put())
    result = arc_halo.run("infer", "generate", "lm", "--prompt", PROMPT, *OPTIONS)
    assert result.stdout.split() == [f"w{token}" for token in tokens]
    (line,) = result.stderr.splitlines()
    assert line.startswith("8 tokens of the prompt, 0 from the cache; first token after ")
    assert "6 tokens generated at " in line
    assert line.endswith("break-even not measured yet")
    assert "saved" not in line


@pytest.mark.parametrize("computed", [1e-3, 1e9])
def test_time_saved_may_be_time_lost(arc_halo, put, database, computed):
    put()
    asked(arc_halo)
    took = {"read_nbytes": 10**15, "read_seconds": 1, "computed_token_count": 10**6, "computed_seconds": 1e6 / computed}
    database.transaction(lambda session: session.execute(update(CacheStatistics).values(took)))
    line = arc_halo.run("infer", "generate", "lm", "--prompt", PROMPT, *OPTIONS).stderr
    assert ("s lost by reading; break-even" if computed > 1 else "s saved; break-even") in line
    assert "-" not in line.partition("tokens/s; ")[2].partition(";")[0]


def test_the_first_computation_of_all_is_measured(arc_halo, put):
    put()
    answer = arc_halo.json("infer", "generate", "lm", "--prompt", " ".join(5 * PROMPT.split()), *OPTIONS)
    (namespace,) = arc_halo.json("cache", "stats")["namespaces"]
    assert answer["prompt_token_count"] == 40
    assert namespace["computed_tokens_per_second"] > 0
    assert namespace["break_even_nbytes_per_second"] > 0


def test_a_session_is_recorded(arc_halo, put, database):
    put()
    asked(arc_halo)
    asked(arc_halo, "--temperature", 0.5, "--seed", 1)
    with database.session() as session:
        first, second = session.scalars(select(InferenceSession).order_by(InferenceSession.created_at))
        figures = session.scalars(select(InferenceMetric).order_by(InferenceMetric.recorded_at)).all()
    assert (first.status, first.config["temperature"]) == ("completed", 0.0)
    assert (second.config["temperature"], second.config["seed"]) == (0.5, 1)
    assert [(each.prompt_token_count, each.cached_token_count) for each in figures] == [(8, 0), (8, 7)]


def test_equal_seeds_draw_equal_answers(arc_halo, put):
    put()
    drawn = [asked(arc_halo, "--temperature", 2, "--seed", seed, "--no-cache")["tokens"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_without_the_cache_nothing_is_stored(arc_halo, put, database):
    tokens = expected(put())
    answer = asked(arc_halo, "--no-cache")
    assert (answer["tokens"], answer["cached_token_count"], answer["seconds_saved"]) == (tokens, 0, None)
    with database.session() as session:
        assert session.scalar(select(func.count()).select_from(KVCacheBlock)) == 0


def test_unlogged_and_lossless(arc_halo, put, database):
    tokens = expected(put())
    options = ("--unlogged", "--codec", "lossless")
    asked(arc_halo, *options)
    assert asked(arc_halo, *options)["tokens"] == tokens
    with database.session() as session:
        assert session.scalar(select(func.count()).select_from(KVCacheUnloggedPayload)) == 4  # layers of two blocks


def test_ids_for_a_model_without_a_tokenizer(arc_halo, put):
    tokens = expected(put(has_tokenizer=False))
    words = ("infer", "generate", "lm", "--tokens", ",".join(map(str, TOKENS)), *OPTIONS)
    assert arc_halo.says(*words).split() == [str(token) for token in tokens]
    answer = arc_halo.json(*words)
    assert (answer["text"], answer["cached_token_count"]) == (None, 7)
    assert "has no tokenizer files" in arc_halo.error("infer", "generate", "lm", "--prompt", PROMPT)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tokens", "64"], "knows the tokens from 0 to 63"),
        (["--prompt", PROMPT, "--max-new-tokens", 60], "64 positions"),
        (["--prompt", ""], "no tokens"),
    ],
)
def test_what_does_not_fit_is_refused(arc_halo, put, words, said):
    put()
    assert said in arc_halo.error("infer", "generate", "lm", *words)


def test_a_prompt_is_text_or_ids(arc_halo):
    assert "give --prompt, or --tokens" in arc_halo.run("infer", "generate", "lm", code=2).stderr
    assert "no token id; write 1,2,3 or use --prompt" in said(arc_halo, "--tokens", "x")
    assert "not both" in said(arc_halo, "--tokens", "1", "--prompt", "x")


def said(arc_halo, *words):
    """What is said of a wrong use, on one line."""
    return " ".join(arc_halo.run("infer", "generate", "lm", *words, code=2).stderr.replace("│", " ").split())


def test_a_prompt_is_read_from_stdin(arc_halo, put):
    tokens = expected(put())
    result = arc_halo.run("infer", "generate", "lm", "--prompt", "-", *OPTIONS, answer=f"{PROMPT}\n")
    assert result.stdout.split() == [f"w{token}" for token in tokens]


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny("bert"),
        lambda: BertModel(tiny("bert").config),
        lambda: GPT2ForSequenceClassification(tiny("gpt2").config),
        lambda: ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)),
    ],
    ids=["masked", "encoder", "classifier", "vision"],
)
def test_a_model_that_generates_nothing(arc_halo, database, tmp_path, make):
    make().save_pretrained(tmp_path)
    database.transaction(lambda session: import_model(session, tmp_path, name="lm", embeddings=False))
    refused = arc_halo.error("infer", "generate", "lm", "--tokens", "1,2")
    assert "lm@1 is not a decoder: it has no head to generate text with" in refused


def test_a_decoder_that_was_saved_without_its_tied_head(arc_halo, database, tmp_path):
    tiny("gpt2").transformer.save_pretrained(tmp_path)
    database.transaction(lambda session: import_model(session, tmp_path, name="lm", embeddings=False))
    assert len(arc_halo.json("infer", "generate", "lm", "--tokens", "1,2", "--max-new-tokens", 3)["tokens"]) == 3


def test_a_quantised_model_gives_its_floats(arc_halo, put, database):
    put()
    database.transaction(lambda session: quantize_model(session, "lm@1", "int8", name="lm"))
    refused = arc_halo.error("infer", "generate", "lm", "--prompt", PROMPT)
    assert "--dequantize" in refused
    assert len(asked(arc_halo, "--dequantize")["tokens"]) == 6
    assert asked(arc_halo, "--dequantize")["cached_token_count"] == len(TOKENS) - 1


def test_an_answer_names_its_session(arc_halo, put):
    put()
    listed = arc_halo.json("infer", "show", asked(arc_halo)["session_id"])
    assert (listed["request_count"], listed["prompt_token_count"]) == (1, len(TOKENS))


def test_without_the_library(arc_halo, monkeypatch):
    monkeypatch.setattr("arc_halo.cli.extras.find_spec", lambda _name: None)
    error = arc_halo.error("infer", "generate", "lm", "--prompt", "one")
    assert "models are run by transformers and torch: pip install 'arc-halo[transformers]'" in error


def test_texts_are_explained_and_pinned(arc_halo, put):
    put()
    asked(arc_halo)
    (namespace,) = arc_halo.json("cache", "explain", "--text", f"{PROMPT} w7", "--model", "lm")
    assert (namespace["hit_token_count"], namespace["end"]) == (8, "nothing_after")
    assert namespace["tokenizer_digest"] is not None
    assert arc_halo.says("cache", "pin", "--text", PROMPT, "--model", "lm") == "pinned 8 of 8 tokens of lm\n"


def test_the_example_of_the_page(arc_halo, database):
    shipped = Path(str(files("arc_halo"))) / "demo_model"
    database.transaction(lambda session: import_model(session, shipped, name="demo", embeddings=False))
    lines = [line for block in blocks(COMMAND_LINE) for line in block.lines if line.startswith("arc-halo infer gen")]
    for line in lines:
        answer = arc_halo.json(*shlex.split(line)[1:])
        assert (len(answer["tokens"]) > 0, answer["prompt_token_count"] > 0) == (True, True)
        assert answer["text"]
    assert lines

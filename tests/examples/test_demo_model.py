"""The shipped demo model is what its card says: read without torch or transformers."""

from __future__ import annotations

import hashlib
import json
import math
import re
from importlib.resources import files
from pathlib import Path

import pytest
from safetensors import safe_open

FOLDER = Path(str(files("arc_halo"))) / "demo_model"
FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def config():
    return json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def shapes():
    with safe_open(FOLDER / "model.safetensors", framework="numpy") as weights:
        return {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 (no mapping)


def test_the_folder_is_complete_and_fits_in_a_wheel():
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}

    assert sorted(sizes) == sorted([*FILES, "README.md"])
    assert sum(sizes.values()) <= 4_000_000


def test_the_card_lists_size_and_digest_of_every_file():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = {
        name: (size, digest) for name, size, digest in re.findall(r"\| `(.+)` \| ([\d,]+) \| `(\w{64})` \|", card)
    }

    contents = {name: (FOLDER / name).read_bytes() for name in FILES}
    assert listed == {name: (f"{len(data):,}", hashlib.sha256(data).hexdigest()) for name, data in contents.items()}


def test_the_card_states_the_parameter_count(shapes):
    parameters = sum(math.prod(shape) for shape in shapes.values())

    assert 1_000_000 <= parameters <= 2_000_000
    assert f"A Llama of {parameters:,} parameters" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_every_weight_is_bfloat16():
    with safe_open(FOLDER / "model.safetensors", framework="numpy") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118 (no mapping)


def test_the_weights_have_the_shapes_of_the_config(config, shapes):
    hidden, heads = config["hidden_size"], config["num_key_value_heads"]
    blocks = {name.split(".")[2] for name in shapes if name.startswith("model.layers.")}

    assert config["architectures"] == ["LlamaForCausalLM"]
    assert len(blocks) == config["num_hidden_layers"]
    assert shapes["model.embed_tokens.weight"] == [config["vocab_size"], hidden]
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == [heads * config["head_dim"], hidden]


def test_query_heads_share_key_value_heads_and_the_output_shares_the_embedding(config, shapes):
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in shapes


def test_the_tokenizer_names_every_row_of_the_embedding(config):
    tokenizer = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))

    assert tokenizer["model"]["type"] == "BPE"
    assert sorted(tokenizer["model"]["vocab"].values()) == list(range(config["vocab_size"]))


@pytest.mark.parametrize("name", [*FILES[:2], *FILES[3:], "README.md"])
def test_no_file_names_the_machine_it_was_made_on(name):
    text = (FOLDER / name).read_text(encoding="utf-8")

    assert "_name_or_path" not in text
    assert not re.search(r"(?<![\w/.])/(home|root|tmp|Users|work)/\w", text)

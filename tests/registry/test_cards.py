"""Models as repositories of the hub: shards, cards, attributes."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load_file

from arc_halo.formats.hf import open_model
from arc_halo.registry import add_lineage, create_model, export_model, import_model, iter_tensors, quantize_model
from arc_halo.registry.cards import export_repository, write_card
from tests.fixtures.hub import ATTRIBUTES
from tests.fixtures.models import bert, llama, write_folder
from tests.fixtures.tensors import same


@pytest.fixture
def folder(tmp_path):
    return write_folder(bert(), tmp_path / "bert")


@pytest.fixture
def model(session, folder):
    return import_model(session, folder, name="bert")


@pytest.mark.parametrize("limit", [1, 3000, 10**9])
def test_shards_are_a_folder_of_the_same_model(session, model, tmp_path, limit):
    export_model(session, model, tmp_path / "out", max_shard_nbytes=limit)
    with open_model(tmp_path / "out") as opened:
        assert len(opened.weights) == {1: len(bert().shapes), 10**9: 1}.get(limit, len(opened.weights))
        assert {file.name for file in opened.side_files} >= {"config.json", "tokenizer.json", "vocab.txt"}
        read = {name: array for file in opened.weights for name, array in load_file(tmp_path / "out" / file).items()}
    stored = dict(iter_tensors(session, model))
    assert read.keys() == stored.keys()
    assert all(same(read[name], stored[name]) for name in stored)
    again = import_model(session, tmp_path / "out", name="again")
    assert again.weights_digest == model.weights_digest


def test_shards_of_an_imported_index_are_laid_out_anew(session, tmp_path):
    model = import_model(session, write_folder(bert(), tmp_path / "in", shards=3), name="sharded")
    export_model(session, model, tmp_path / "out", max_shard_nbytes=10**9)
    assert {path.name for path in (tmp_path / "out").glob("model*")} == {"model.safetensors"}
    export_model(session, model, tmp_path / "more", max_shard_nbytes=3000)
    index = json.loads((tmp_path / "more" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in (tmp_path / "more").glob("*.safetensors")}
    assert index["metadata"]["total_size"] == model.nbytes


def test_a_shard_is_no_larger_than_it_may_be(session, model, tmp_path):
    export_model(session, model, tmp_path / "out", max_shard_nbytes=3000)
    for path in (tmp_path / "out").glob("*.safetensors"):
        arrays = load_file(path)
        assert len(arrays) == 1 or sum(array.nbytes for array in arrays.values()) <= 3000


def test_a_repository_has_card_and_attributes(session, model, folder, tmp_path):
    written = export_repository(session, model, tmp_path / "out")
    assert {path.name for path in written} == {path.name for path in folder.iterdir()} | {"README.md", ".gitattributes"}
    assert (tmp_path / "out" / ".gitattributes").read_bytes() == ATTRIBUTES


def test_an_imported_card_is_the_card(session, folder, tmp_path):
    (folder / "README.md").write_text("# Mine\n")
    model = import_model(session, folder, name="bert")
    export_repository(session, model, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "# Mine\n"


def test_a_card_that_is_there_stays(session, model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("# Written by hand\n")
    export_repository(session, model, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "# Written by hand\n"


def test_a_card_says_what_is_known(session, model):
    card = ModelCard(write_card(session, model))
    assert card.data.tags == ["arc-halo", "bert"]
    assert "# bert" in card.text
    assert f"| parameters | {model.parameter_count:,} |" in card.text
    assert model.weights_digest.hex() in card.text
    assert "Lineage" not in card.text


def test_a_card_names_what_the_model_was_made_from(session, hub, folder):
    hub.publish("lab/bert", folder)
    origin = import_model(session, "hf://lab/bert", name="bert")
    made = quantize_model(session, origin, "int8", name="small")
    card = ModelCard(write_card(session, made))
    assert card.data.base_model == ["lab/bert"]
    assert card.data["base_model_relation"] == "quantized"
    assert "- quantize of `bert@1`" in card.text
    assert "imported from | `hf://lab/bert`, commit `" in write_card(session, origin)


def test_names_cannot_break_a_card(session):
    name = 'a"\n---\n# [x](http://y) `|` <b>'.replace("\n", " ")
    model = create_model(session, name, bert().config | {"model_type": 'x": [1]\n\n# heading'}, bert().arrays())
    card = ModelCard(write_card(session, model))
    assert card.data.tags[0] == "arc-halo"
    assert len(card.data.to_dict()) == 1
    assert "\n# heading" not in card.text
    assert r"\[x\](http://y) \`\|\` \<b\>" in card.text


def test_transformers_is_named_where_a_class_is(session, tmp_path):
    small = llama()
    folder = write_folder(small, tmp_path / "llama")
    (folder / "config.json").write_text(json.dumps(small.config | {"architectures": ["LlamaForCausalLM"]}))
    card = ModelCard(write_card(session, import_model(session, folder, name="llama")))
    assert card.data.library_name == "transformers"


def test_parents_are_read_at_once(session, model, count_statements):
    for number in range(5):
        parent = create_model(session, f"parent{number}", bert().config, bert().arrays())
        add_lineage(session, model, parent, "merge")
    session.flush()
    session.expire_all()
    with count_statements(session.get_bind()) as few:
        write_card(session, model)
    assert len(few) <= 5

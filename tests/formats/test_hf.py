from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from arc_halo.errors import ModelFolderError, PickleRefused, SafetensorsError
from arc_halo.formats.architectures import describe
from arc_halo.formats.hf import open_model
from tests.fixtures import gguf
from tests.fixtures.models import VOCABULARY, bert, llama, mixtral, write_folder, write_json

INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-00003.safetensors"


@pytest.fixture
def folder(tmp_path):
    return write_folder(bert(), tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    return write_folder(mixtral(), tmp_path / "sharded", shards=3)


@pytest.fixture(autouse=True)
def _files_are_closed_again():
    before = len(list(Path("/dev/fd").iterdir()))
    yield
    assert len(list(Path("/dev/fd").iterdir())) == before


def kinds(model):
    return {file.name: file.kind for file in model.files}


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    write_json(folder / INDEX, index)


def test_a_folder_with_one_weights_file(folder):
    with open_model(folder) as model:
        assert kinds(model) == {
            "model.safetensors": "weights", "config.json": "config", "tokenizer.json": "tokenizer",
            "vocab.txt": "tokenizer",
        }  # fmt: skip
        assert model.config == bert().config
        assert model.tensors().keys() == bert().shapes.keys()
        assert model.ignored == ()
        assert describe(model.config, model.tensors()).unrecognised == 0


def test_side_files_are_read_as_they_are(folder):
    with open_model(folder) as model:
        assert [file.name for file in model.side_files] == ["config.json", "tokenizer.json", "vocab.txt"]
        for file in model.side_files:
            assert model.read_bytes(file.name) == (folder / file.name).read_bytes()
            assert file.nbytes == (folder / file.name).stat().st_size


def test_shards_come_in_the_order_of_their_names(sharded):
    with open_model(sharded) as model:
        names = [f"model-{shard:05}-of-00003.safetensors" for shard in (1, 2, 3)]
        assert list(model.weights) == names
        assert [file.name for file in model.files[:3]] == names
        assert kinds(model)[INDEX] == "index"
        assert model.tensors().keys() == mixtral().shapes.keys()


def test_files_of_subfolders_belong_to_the_model(folder):
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16})
    with open_model(folder) as model:
        assert kinds(model)["1_Pooling/config.json"] == "other"
        assert b"word_embedding_dimension" in model.read_bytes("1_Pooling/config.json")


def test_what_is_no_part_of_the_model_is_left_out_and_named(folder, tmp_path):
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    (folder / "onnx").mkdir()
    write_folder(llama(), folder / "original")
    (folder / "linked").symlink_to(tmp_path)
    for name in (".gitattributes", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "optimizer.pt", "a:b.txt"):
        (folder / name).write_bytes(b"x")
    save_file({"x": np.zeros(1)}, folder / "adapter.safetensors")
    with open_model(folder) as model:
        assert set(model.ignored) == {
            ".git/", ".gitattributes", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "optimizer.pt", "linked/",
            "a:b.txt", "adapter.safetensors", "original/model.safetensors",
        }  # fmt: skip
        assert set(model.weights) == {"model.safetensors"}


def test_one_file(folder):
    with open_model(folder / "model.safetensors") as model:
        assert kinds(model) == {"model.safetensors": "weights"}
        assert (model.config, model.token_texts()) == ({}, {})
        assert len(model.tensors()) == len(bert().shapes)


@pytest.mark.parametrize("name", ["llama3:8b", "a\\b", "a\nb"], ids=repr)
@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
def test_a_file_whose_name_could_not_be_exported(folder, tmp_path, name, suffix):
    path = tmp_path / f"{name}{suffix}"
    if suffix == ".gguf":
        path.write_bytes(gguf.file_bytes([], []))
    else:
        path.write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ModelFolderError, match="rename the file"):
        open_model(path)


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    with open_model(folder) as model:
        assert model.config == {}


def test_a_weights_file_of_another_name(folder):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with open_model(folder) as model:
        assert list(model.weights) == ["adapter_model.safetensors"]


def hub_cache(folder, cache: Path) -> Path:
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    (snapshot / "1_Pooling").mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    (blobs / "pooling").write_text("{}")
    (snapshot / "1_Pooling" / "config.json").symlink_to("../../../blobs/pooling")
    return snapshot


def test_a_folder_of_the_hub_cache(folder, tmp_path):
    snapshot = hub_cache(folder, tmp_path / "models--x")
    (tmp_path / "latest").symlink_to(snapshot)
    for path in (snapshot, tmp_path / "latest"):
        with open_model(path) as model:
            assert len(model.files) == 5
            assert model.config == bert().config
            assert model.read_bytes("1_Pooling/config.json") == b"{}"
    with open_model(snapshot / "model.safetensors") as model:
        assert list(model.weights) == ["model.safetensors"]


def test_weights_may_be_links_to_another_disk(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "big.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "big.safetensors")
    with open_model(folder) as model:
        assert len(model.tensors()) == len(bert().shapes)


@pytest.mark.parametrize("name", ["README.md", "tokenizer_config.json"])
def test_a_side_file_that_links_out_of_the_folder(folder, tmp_path, name):
    (tmp_path / "private").write_text("secret")
    (folder / name).symlink_to(tmp_path / "private")
    with pytest.raises(ModelFolderError, match="links out of the folder"):
        open_model(folder)


def test_blobs_belong_to_a_model_in_the_hub_cache_only(folder, tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "private").write_text("secret")
    inner = tmp_path / "other" / "model"
    inner.parent.mkdir()
    folder.rename(inner)
    (inner / "README.md").symlink_to("../../blobs/private")
    with pytest.raises(ModelFolderError, match="links out of the folder"):
        open_model(inner)


def test_a_link_that_leads_nowhere(folder):
    (folder / "tokenizer_config.json").symlink_to("../../blobs/gone")
    with pytest.raises(ModelFolderError, match="not there; download"):
        open_model(folder)


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "..\\model.safetensors", "", ".",
        "C:model.safetensors", "model\n.safetensors", "pytorch_model.bin", "config.json", None, 1, ["x.safetensors"],
    ],
)  # fmt: skip
def test_a_shard_name_that_is_no_file_beside_the_index(sharded, shard):
    change_index(sharded, lambda weight_map: weight_map.update({"lm_head.weight": shard}))
    with pytest.raises(ModelFolderError, match=r"a shard is a \.safetensors file beside it"):
        open_model(sharded)


def test_a_missing_shard(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelFolderError, match=r"names model-00002-of-00003.safetensors, which is not there"):
        open_model(sharded)


def test_a_tensor_in_two_shards(sharded):
    save_file(mixtral().arrays(), sharded / "model-00003-of-00003.safetensors")
    with pytest.raises(ModelFolderError, match=r"is in model-00001-\S+ and in model-00003-"):
        open_model(sharded)


def test_a_tensor_twice_in_the_index(sharded):
    text = (sharded / INDEX).read_text()
    twice = text.replace('"weight_map": {', '"weight_map": {"lm_head.weight": "model-00001-of-00003.safetensors",')
    (sharded / INDEX).write_text(twice)
    with pytest.raises(ModelFolderError, match=r"'lm_head\.weight' stands twice"):
        open_model(sharded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("lm_head.weight"), r"does not name tensor 'lm_head\.weight', which model-0000\d-"),
        (lambda weights: weights.update({"x": FIRST}), "puts tensor 'x' into model-00001-.*, which does not have it"),
        (lambda weights: weights.update({"lm_head.weight": FIRST}), "'lm_head.weight' into model-00001-.* not have"),
    ],
)
def test_an_index_that_disagrees_with_the_headers(sharded, change, message):
    change_index(sharded, change)
    with pytest.raises(ModelFolderError, match=message):
        open_model(sharded)


def without_shard(weights, shard):
    for tensor in [tensor for tensor, holder in weights.items() if holder == shard]:
        del weights[tensor]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_index_that_omits_a_shard_of_its_set(sharded, number):
    shard = f"model-0000{number}-of-00003.safetensors"
    change_index(sharded, lambda weights: without_shard(weights, shard))
    with pytest.raises(ModelFolderError, match=rf"does not name {shard}, .*; mend the index"):
        open_model(sharded)
    (sharded / shard).unlink()
    with open_model(sharded) as model:
        assert len(model.weights) == 2


@pytest.mark.parametrize(
    "name", ["consolidated.safetensors", "adapter-00001-of-00003.safetensors", "model-00001-of-00004.safetensors"]
)
def test_weights_of_another_set_beside_an_index_are_left_out_and_named(sharded, name):
    save_file({"x": np.zeros(1)}, sharded / name)
    with open_model(sharded) as model:
        assert model.ignored == (name,)
        assert model.tensors().keys() == mixtral().shapes.keys()


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}])
def test_an_index_without_weight_map(sharded, index):
    write_json(sharded / INDEX, index)
    with pytest.raises(ModelFolderError, match="has no weight_map"):
        open_model(sharded)


def test_two_models_in_one_folder(sharded):
    save_file({"x": np.zeros(1)}, sharded / "model.safetensors")
    with pytest.raises(ModelFolderError, match="two models"):
        open_model(sharded)


def test_two_indexes(sharded):
    write_json(sharded / "other.safetensors.index.json", {})
    with pytest.raises(ModelFolderError, match="2 indexes"):
        open_model(sharded)


def test_several_weights_files_without_index(sharded):
    (sharded / INDEX).unlink()
    with pytest.raises(ModelFolderError, match=r"no model.safetensors and no index"):
        open_model(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.PT", "consolidated.00.pth", "weights.ckpt", "a.pkl"])
def test_pickles_only(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({}))
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(PickleRefused, match="safetensors"):
            open_model(path)


def test_a_pickle_under_another_name(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps({"weight": [0.0] * 100}))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(PickleRefused):
            open_model(path)


def test_nothing_to_open(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"ONNX")
    for path in (tmp_path, tmp_path / "model.onnx", tmp_path / "absent", tmp_path / ("x" * 5000)):
        with pytest.raises(ModelFolderError):
            open_model(path)


def test_a_gguf_vocabulary_of_nothing_is_refused_before_it_takes_memory(tmp_path):
    count = 1_000_000
    tokens = gguf.string("tokenizer.ggml.tokens") + gguf.u32(9) + gguf.u32(8) + gguf.u64(count) + bytes(8 * count)
    (tmp_path / "model.gguf").write_bytes(gguf.file_bytes([tokens]))
    with open_model(tmp_path / "model.gguf") as model, pytest.raises(ModelFolderError, match=r"tokens has .* MiB"):
        model.token_texts()


def test_a_gguf_file_is_a_model_of_its_own(tmp_path):
    architecture = gguf.entry("general.architecture", "string", "llama")
    tokens = gguf.entry("tokenizer.ggml.tokens", ["string"], [b"a", b"\xff\0"])
    raw = gguf.file_bytes([architecture, tokens], [gguf.tensor("a", [2], 0, 0)], data=bytes(8))
    (tmp_path / "model.gguf").write_bytes(raw)
    (tmp_path / "tokenizer.json").write_text("{}")
    with open_model(tmp_path / "model.gguf") as model:
        assert [(file.name, file.kind, file.nbytes) for file in model.files] == [("model.gguf", "weights", len(raw))]
        assert model.config["model_type"] == "llama"
        assert model.config["vocab_size"] == 2
        assert model.token_texts() == {0: "a", 1: "\\xff\\x00"}
        assert list(model.tensors()) == ["a"]
    with pytest.raises(ModelFolderError, match=r"but model\.gguf; give that file itself"):
        open_model(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"{", b"\xff{}", b"\xef\xbb\xbf{}", b"[" * 100_000])
def test_a_config_that_is_no_json_object(folder, raw):
    (folder / "config.json").write_bytes(raw)
    with pytest.raises(ModelFolderError, match=r"config.json"):
        open_model(folder)


def test_a_broken_shard_closes_the_others(sharded):
    (sharded / "model-00003-of-00003.safetensors").write_bytes(b"\x01")
    with pytest.raises(SafetensorsError):
        open_model(sharded)


def test_an_absurdly_large_side_file(folder):
    with (folder / "notes.txt").open("wb") as file:
        file.truncate((256 << 20) + 1)
    with pytest.raises(ModelFolderError, match="a side file may have"):
        open_model(folder)


def test_an_absurdly_large_config(folder):
    with (folder / "config.json").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ModelFolderError, match="too many to be parsed"):
        open_model(folder)


def test_a_folder_of_folders(folder):
    deep = folder.joinpath(*"abcdefghij")
    deep.mkdir(parents=True)
    with pytest.raises(ModelFolderError, match="nested deeper"):
        open_model(folder)


def test_a_folder_of_too_many_files(folder, monkeypatch):
    monkeypatch.setattr("arc_halo.formats.folder.MAX_FILES", 3)
    with pytest.raises(ModelFolderError, match="more than 3 files"):
        open_model(folder)


@pytest.mark.parametrize("name", ["../config.json", "/etc/hostname", "absent", "model.safetensors", ""])
def test_only_side_files_are_read(folder, name):
    with open_model(folder) as model, pytest.raises(ModelFolderError, match="no side file"):
        model.read_bytes(name)


@pytest.mark.parametrize("change", [b"", b"{}" * 1000])
def test_a_side_file_that_changes_while_it_is_read(folder, change):
    with open_model(folder) as model:
        (folder / "config.json").write_bytes(change)
        with pytest.raises(ModelFolderError, match="changed its length"):
            model.read_bytes("config.json")


def test_a_side_file_that_is_gone(folder):
    with open_model(folder) as model:
        (folder / "config.json").unlink()
        with pytest.raises(ModelFolderError, match=r"config\.json cannot be read: No such file"):
            model.read_bytes("config.json")


def test_token_texts_of_tokenizer_json(folder):
    (folder / "vocab.txt").unlink()
    with open_model(folder) as model:
        assert model.token_texts() == dict(enumerate(VOCABULARY))


def test_token_texts_of_plain_vocabularies(folder):
    (folder / "tokenizer.json").unlink()
    write_json(folder / "added_tokens.json", {"<mask>": 12})
    with open_model(folder) as model:
        assert model.token_texts() == dict(enumerate([*VOCABULARY, "<mask>"]))
    write_json(folder / "vocab.json", {"a": 0, "b": 1})
    with open_model(folder) as model:
        assert model.token_texts() == {0: "a", 1: "b", 12: "<mask>"}


def test_a_repository_of_the_hubs_cache_names_its_snapshots(tmp_path):
    repository = tmp_path / "models--lab--tiny--bert"
    snapshot = write_folder(bert(), repository / "snapshots" / "abc123")
    with pytest.raises(ModelFolderError, match=r"holds no \.safetensors file") as caught:
        open_model(repository)
    assert str(caught.value).endswith(f"give {snapshot}, or hf://lab/tiny--bert")
    repository.rename(tmp_path / "other")
    with pytest.raises(ModelFolderError, match=r"snapshots/abc123$"):
        open_model(tmp_path / "other")


@pytest.mark.parametrize("path", ["lab/bert", "hf:/lab/bert", "hf:/lab/bert@v1"])
def test_a_model_of_the_hub_that_is_called_like_a_path(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFolderError, match=r"; a model of the hub is hf://lab/bert$"):
        open_model(path)


@pytest.mark.parametrize("path", ["bert", "./lab/bert", "../bert", "/lab/bert", "a/lab/bert", "lab/bert.safetensors"])
def test_other_paths_are_no_models_of_the_hub(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFolderError, match="is no folder and no file") as caught:
        open_model(path)
    assert ("hf://" in str(caught.value)) is (path == "./lab/bert")  # which pathlib takes for lab/bert

from __future__ import annotations

import hashlib
import json
import os
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sqlalchemy import text

from arc_halo.errors import DigestMismatch, ModelFolderError, ModelNotFound
from arc_halo.registry import create_model, export_model, import_model, iter_tensors, read_tensor
from tests.fixtures.models import bert, gpt2, llama, mixtral, unknown, write_folder
from tests.fixtures.tensors import random_array, same, weights


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


MODELS = {"bert": bert(), "gpt2": gpt2(), "llama": llama(tied=True), "mixtral": mixtral(), "unknown": unknown()}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_an_export_is_the_import_byte_for_byte(session, tmp_path, name, shards):
    folder = write_folder(MODELS[name], tmp_path / "in", shards=shards)
    model = import_model(session, folder, name=name)
    written = export_model(session, model, tmp_path / "out")
    assert digests(tmp_path / "out") == digests(folder)
    assert sorted(written) == sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_files_of_subfolders_come_too(session, tmp_path):
    folder = write_folder(bert(), tmp_path / "in")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 16}\r\n')
    (folder / "README.md").write_bytes(b"\xff\xfe not UTF-8")
    export_model(session, import_model(session, folder, name="a"), tmp_path / "out")
    assert digests(tmp_path / "out") == digests(folder)


def test_a_header_keeps_its_order_padding_and_metadata(session, tmp_path):
    header = (
        b'{ "b" :{"shape":[2], "dtype":"F32","data_offsets":[8,16]},'
        b'"__metadata__":{"z":"\\u00e9","a":""},\n "a":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}  '
    )
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(range(16)))
    export_model(session, import_model(session, path, name="odd"), tmp_path / "out")
    assert (tmp_path / "out" / "odd.safetensors").read_bytes() == path.read_bytes()


def test_the_hubs_cache_of_links(session, tmp_path):
    plain = write_folder(bert(), tmp_path / "plain")
    root = tmp_path / "models--x"
    snapshot = root / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for name, digest in digests(plain).items():
        shutil.copy(plain / name, root / "blobs" / digest)
        (snapshot / name).symlink_to(os.path.relpath(root / "blobs" / digest, snapshot))
    export_model(session, import_model(session, snapshot, name="hub"), tmp_path / "out")
    assert digests(tmp_path / "out") == digests(plain)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_any_bits_of_any_type_come_back(session, tmp_path):
    dtypes = [np.float64, np.float32, np.float16, np.int64, np.uint8, np.bool_]
    arrays = {np.dtype(dtype).name: random_array(dtype, (37, 11), 7) for dtype in dtypes}
    arrays |= {"scalar": np.array(1, np.float32), "none": np.empty((0, 3), np.float32)}
    save_file(arrays, tmp_path / "all.safetensors")
    export_model(session, import_model(session, tmp_path / "all.safetensors", name="all"), tmp_path / "out")
    assert (tmp_path / "out" / "all.safetensors").read_bytes() == (tmp_path / "all.safetensors").read_bytes()


def test_a_model_made_of_arrays_loads_in_the_reference_library(session, tmp_path):
    arrays = {
        "w": weights((30, 20), dtype=ml_dtypes.bfloat16), "b": weights((3,)), "step": np.int64(3).reshape(()),
        "mask": np.array([True, False]), "turned": weights((5, 6)).T, "big": weights((4,)).astype(">f4"),
    }  # fmt: skip
    model = create_model(session, "made", {"model_type": "custom"}, arrays)
    export_model(session, model, tmp_path)
    loaded = load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == arrays.keys()
    assert all(same(loaded[name], arrays[name]) for name in arrays)
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "custom"}


def test_an_export_imports_again_as_the_same_weights(session, tmp_path):
    made = create_model(session, "made", llama().config, llama().arrays())
    export_model(session, made, tmp_path)
    again = import_model(session, tmp_path, name="again")
    assert again.weights_digest == made.weights_digest
    assert again.architecture_config == made.architecture_config


def change_shape(session, model):
    """As fine-tuning with more tokens does."""
    grown = create_model(session, "grown", {}, {"a": weights((20, 16))})
    statement = "UPDATE arc_halo.model_weights SET tensor_id = :new WHERE model_id = :model AND name = :name"
    new = session.scalar(
        text("SELECT tensor_id FROM arc_halo.model_weights WHERE model_id = :model"), {"model": grown.id}
    )
    name = "embeddings.word_embeddings.weight"
    session.execute(text(statement), {"new": new, "model": model.id, "name": name})
    return name


def test_weights_of_another_shape_are_laid_out_anew(session, tmp_path):
    model = import_model(session, write_folder(bert(), tmp_path / "in", shards=2), name="a")
    name = change_shape(session, model)
    export_model(session, model, tmp_path / "out")
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert same(loaded.pop(name), weights((20, 16)))
    assert all(same(loaded[each], array) for each, array in bert().arrays().items() if each != name)
    assert "model.safetensors.index.json" not in digests(tmp_path / "out")


def test_weights_of_the_same_shape_take_the_place_of_the_old_ones(session, tmp_path):
    folder = write_folder(bert(), tmp_path / "in")
    model = import_model(session, folder, name="a")
    other = import_model(session, write_folder(bert(), tmp_path / "other", seed=1), name="b")
    session.execute(
        text(
            "UPDATE arc_halo.model_weights AS w SET tensor_id = o.tensor_id FROM arc_halo.model_weights AS o"
            " WHERE o.name = w.name AND w.model_id = :model AND o.model_id = :other"
        ),
        {"model": model.id, "other": other.id},
    )
    export_model(session, model, tmp_path / "out")
    assert digests(tmp_path / "out") == digests(tmp_path / "other")


def test_files_of_the_same_name_are_replaced_and_others_left(session, tmp_path):
    folder = write_folder(bert(), tmp_path / "in")
    model = import_model(session, folder, name="a")
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"old")
    (out / "notes.txt").write_text("mine")
    export_model(session, model, out)
    assert digests(out) == digests(folder) | {"notes.txt": hashlib.sha256(b"mine").hexdigest()}


LAYOUTS = {"one": None, "some": 6000, "many": 3000}


@pytest.mark.parametrize("after", LAYOUTS)
@pytest.mark.parametrize("before", LAYOUTS)
def test_shards_of_another_export_are_not_left_beside(session, tmp_path, before, after):
    model = create_model(session, "m", bert().config, bert().arrays())
    out = tmp_path / "out"
    old = export_model(session, model, out, max_shard_nbytes=LAYOUTS[before])
    held = digests(out)
    if before == after:
        export_model(session, model, out, max_shard_nbytes=LAYOUTS[after])
        assert digests(out) == held
        return
    with pytest.raises(ModelFolderError, match="choose another folder, or delete them") as refused:
        export_model(session, model, out, max_shard_nbytes=LAYOUTS[after])
    assert digests(out) == held
    assert min(path.name for path in old if path.name.startswith("model")) in str(refused.value)
    for path in old:
        path.unlink()
    export_model(session, model, out, max_shard_nbytes=LAYOUTS[after])
    assert import_model(session, out, name="again").weights_digest == model.weights_digest


def test_weights_that_could_not_be_told_apart_are_not_left_beside(session, tmp_path):
    named = {}
    for name in ("a", "b", "model"):
        save_file({"w": weights((2, 2))}, tmp_path / f"{name}.safetensors")
        named[name] = import_model(session, tmp_path / f"{name}.safetensors", name=name)
    out = tmp_path / "out"
    export_model(session, named["a"], out)
    for name, other in (("b", "a"), ("a", "model")):
        shutil.copy(tmp_path / f"{other}.safetensors", out)
        with pytest.raises(ModelFolderError, match=rf"another export \({other}\.safetensors\)"):
            export_model(session, named[name], out)
        (out / f"{other}.safetensors").unlink()
    shutil.copy(tmp_path / "a.safetensors", out / "adapter_model.safetensors")
    export_model(session, named["model"], out)  # this is the one that an import takes
    with pytest.raises(ModelFolderError, match=r"another export \(adapter_model\.safetensors, model\.safetensors\)"):
        export_model(session, named["b"], out)


OTHER = "decode(repeat('ab', 32), 'hex')"


@pytest.mark.parametrize("change", ["content = content || ' '", f"digest = {OTHER}", "content = ''"])
def test_a_changed_file_is_found(session, tmp_path, change):
    model = import_model(session, write_folder(bert(), tmp_path / "in"), name="a")
    session.execute(text(f"UPDATE arc_halo.model_files SET {change} WHERE path = 'model.safetensors'"))
    with pytest.raises(DigestMismatch, match=r"model\.safetensors"):
        export_model(session, model, tmp_path / "out")
    assert "model.safetensors" not in digests(tmp_path / "out")


@pytest.mark.parametrize("path", ["../evil", "/tmp/evil", "a/../../evil"])
def test_a_forged_path_does_not_lead_out_of_the_folder(session, tmp_path, path):
    model = import_model(session, write_folder(bert(), tmp_path / "in"), name="a")
    session.execute(text("UPDATE arc_halo.model_files SET path = :path WHERE path = 'config.json'"), {"path": path})
    with pytest.raises(Exception, match="evil") as refused:
        export_model(session, model, tmp_path / "deep" / "out")
    assert refused.type.__module__ == "arc_halo.errors"
    assert not list(tmp_path.rglob("evil*"))


def test_a_broken_export_leaves_no_partial_file(session, tmp_path):
    model = import_model(session, write_folder(bert(), tmp_path / "in"), name="a")

    def stop(phase, _done, _total):
        raise KeyboardInterrupt(phase)

    with pytest.raises(KeyboardInterrupt):
        export_model(session, model, tmp_path / "out", progress=stop)
    assert digests(tmp_path / "out").keys() == {"config.json", "tokenizer.json", "vocab.txt"}


def test_a_model_that_is_not_there(session, tmp_path):
    with pytest.raises(ModelNotFound):
        export_model(session, "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_choose_the_tensors_and_their_order(session, tmp_path):
    model = import_model(session, write_folder(bert(), tmp_path / "in"), name="a")
    asked = ["pooler.dense.bias", "embeddings.position_ids"]
    assert [name for name, _ in iter_tensors(session, model, asked)] == asked
    with pytest.raises(LookupError, match=r"nothing\.like\.it"):
        list(iter_tensors(session, model, ["nothing.like.it"]))
    with pytest.raises(LookupError, match=r"it has .*\.dense\.bias"):
        read_tensor(session, model, "x.pooler.dense.bias")

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import traceback

import huggingface_hub.constants
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import (
    ConfigurationError,
    HubAccessDenied,
    HubError,
    HubModelNotFound,
    HubUnavailable,
    InvalidName,
    ModelFolderError,
    PickleRefused,
)
from arc_halo.formats import hub as formats_hub
from arc_halo.formats.hf import open_model
from arc_halo.formats.hub import NOT_MODELS, HubSnapshot, HubSource, download, locate, parse_source
from arc_halo.formats.hub_errors import translated
from tests.fixtures.hub import ATTRIBUTES
from tests.fixtures.models import bert, write_folder, write_json

NAME = "lab/bert"
SOURCE = HubSource(NAME)

pytestmark = pytest.mark.usefixtures("hub")


@pytest.fixture
def folder(tmp_path):
    return write_folder(bert(), tmp_path / "bert")


@pytest.fixture
def published(hub, folder):
    """With ``lab/bert`` on the hub; its commit."""
    return hub.publish(NAME, folder)


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://lab/bert", HubSource("lab/bert")),
        ("hf://lab/bert/", HubSource("lab/bert")),
        ("hf://models/lab/bert", HubSource("lab/bert")),
        ("hf://lab/bert@v1.0", HubSource("lab/bert", "v1.0")),
        ("hf://lab/bert@a%2Fb/unet", HubSource("lab/bert", "a/b", "unet")),
        ("hf://lab/bert@refs/pr/3", HubSource("lab/bert", "refs/pr/3")),
        ("hf://lab/bert@refs/pr/3/a/b", HubSource("lab/bert", "refs/pr/3", "a/b")),
        ("hf://lab/bert/a/model.safetensors", HubSource("lab/bert", None, "a/model.safetensors")),
    ],
)
def test_sources(text, source):
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "hf://", "hf://bert", "hf://lab/bert@", "hf://lab/bert@a@b", "hf://lab/bert/../x", "hf://lab/bert//x",
        "hf://lab/bert/a\\b", "hf://datasets/lab/bert", "hf://spaces/lab/bert", "hf://läb/bert", "hf://lab/be rt",
        "hf://lab/bert/\n", "hf://lab/bert?x=1", "hf://user:secret@host/x",
    ],
)  # fmt: skip
def test_what_is_no_source(text):
    with pytest.raises(InvalidName, match=r"write hf://|no path inside"):
        parse_source(text)


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True)
OWNERS = NAMES.filter(lambda name: name not in {*NOT_MODELS, "models"})


@given(
    st.builds("{}/{}".format, OWNERS, NAMES),
    st.none() | st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1),
    st.just("") | NAMES | st.builds("{}/{}".format, NAMES, NAMES),
)
def test_a_source_is_what_it_is_written_as(repository, revision, path):
    source = HubSource(repository, revision, path)
    assert parse_source(str(source)) == source


@given(st.text())
def test_any_text_is_a_source_or_refused(text):
    try:
        parsed = parse_source(f"hf://{text}")
    except InvalidName:
        return
    assert parse_source(str(parsed)) == parsed


def test_a_path_is_no_source(tmp_path, hub):
    assert locate(tmp_path) is tmp_path
    assert locate("hf:/lab/bert") == "hf:/lab/bert"
    assert hub.asked == []


def test_a_snapshot_is_the_published_folder(published, folder):
    snapshot = download(SOURCE)
    assert snapshot.origin == {"source": "hf://lab/bert", "commit": published}
    assert files_of(snapshot.path) == {".gitattributes": ATTRIBUTES, **files_of(folder)}
    with open_model(snapshot) as opened:
        assert {file.name for file in opened.files} == files_of(folder).keys()


def test_nothing_but_the_model_is_downloaded(hub, folder):
    for name in ("pytorch_model.bin", "tf_model.h5", "model.fp16.safetensors", "onnx/model.onnx", "onnx/x.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"unwanted")
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", {})
    hub.publish(NAME, folder)
    snapshot = download(SOURCE)
    wanted = {"config.json", "tokenizer.json", "vocab.txt", "model.safetensors", "1_Pooling/config.json"}
    assert hub.downloaded() == wanted | {".gitattributes"}
    assert set(snapshot.ignored) == (files_of(folder).keys() | {".gitattributes"}) - wanted


def test_a_repository_of_too_many_files_is_not_downloaded(hub, folder, monkeypatch):
    for number in range(5):
        (folder / f"note{number}.md").write_text("a note")
    hub.publish(NAME, folder)
    monkeypatch.setattr(formats_hub, "MAX_FILES", 5)
    with pytest.raises(ModelFolderError, match="more than 5 files"):
        download(SOURCE)
    assert not any(name.startswith("note") for name in hub.downloaded())


def test_an_index_says_which_shards(hub, tmp_path):
    folder = write_folder(bert(), tmp_path / "sharded", shards=3)
    (folder / "other.safetensors").write_bytes(b"unwanted")
    hub.publish(NAME, folder)
    snapshot = download(SOURCE)
    assert "other.safetensors" not in hub.downloaded()
    with open_model(snapshot) as opened:
        assert len(opened.weights) == 3


def test_a_shard_that_the_repository_does_not_have(hub, tmp_path):
    folder = write_folder(bert(), tmp_path / "sharded", shards=3)
    next(folder.glob("model-00002*")).unlink()
    hub.publish(NAME, folder)
    with pytest.raises(ModelFolderError, match=r"model-00002-of-00003.safetensors, which is not there"):
        download(SOURCE)
    assert not any(name.endswith(".safetensors") for name in hub.downloaded())


def test_a_shard_that_the_index_omits(hub, tmp_path):
    folder = write_folder(bert(), tmp_path / "sharded", shards=3)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    weight_map = index["weight_map"].items()
    index["weight_map"] = {name: shard for name, shard in weight_map if "00002" not in shard}
    write_json(folder / "model.safetensors.index.json", index)
    hub.publish(NAME, folder)
    with pytest.raises(ModelFolderError, match=r"does not name model-00002-of-00003"):
        download(SOURCE)


def test_two_models_in_one_folder(hub, tmp_path):
    folder = write_folder(bert(), tmp_path / "both", shards=3)
    hub.publish(NAME, write_folder(bert(), folder))
    with pytest.raises(ModelFolderError, match="two models"):
        download(SOURCE)
    assert "model.safetensors" not in hub.downloaded()


def test_revisions(hub, folder, tmp_path):
    first = hub.publish(NAME, folder, "v1")
    second = hub.publish(NAME, write_folder(bert(), tmp_path / "second", seed=1), "refs/pr/1")
    assert download(HubSource(NAME, "v1")).origin == {"source": "hf://lab/bert", "commit": first, "revision": "v1"}
    assert download(HubSource(NAME, "refs/pr/1")).origin["commit"] == second
    assert download(HubSource(NAME, first)).path.name == first


def test_a_folder_of_a_repository(hub, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "all" / "text_encoder")
    write_json(tmp_path / "all" / "model_index.json", {})
    hub.publish(NAME, tmp_path / "all")
    snapshot = download(HubSource(NAME, path="text_encoder"))
    assert snapshot.origin["path"] == "text_encoder"
    assert "model_index.json" not in hub.downloaded()
    with open_model(snapshot) as opened:
        assert {file.name for file in opened.files} == files_of(folder).keys()


def test_a_file_of_a_repository(hub, folder):
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    hub.publish(NAME, folder)
    with pytest.raises(ModelFolderError, match=r"give one of them: hf://lab/bert/one.safetensors"):
        download(SOURCE)
    with open_model(download(HubSource(NAME, path="one.safetensors"))) as opened:
        assert [file.name for file in opened.files] == ["one.safetensors"]


def test_a_gguf_file_of_a_repository(hub, folder):
    (folder / "model.safetensors").unlink()
    for name in ("m-Q4_K.gguf", "m-Q8_0.gguf"):
        (folder / name).write_bytes(name.encode())
    hub.publish(NAME, folder)
    with pytest.raises(ModelFolderError, match=r"2 \.gguf; give the one you want: hf://lab/bert/m-Q4_K\.gguf"):
        download(SOURCE)
    snapshot = download(HubSource(NAME, path="m-Q8_0.gguf"))
    assert snapshot.path.read_bytes() == b"m-Q8_0.gguf"
    assert "m-Q4_K.gguf" not in hub.downloaded()


def test_what_is_there_is_not_downloaded_again(hub, published):
    download(SOURCE)
    before = len(hub.asked)
    download(HubSource(NAME, published))
    assert {path.split("/")[1] for method, path, *_ in hub.asked[before:]} <= {"api"}


@pytest.mark.usefixtures("published")
def test_progress_is_the_bytes_that_come(folder):
    told = []
    download(SOURCE, lambda *each: told.append(each))
    assert {phase for phase, _, _ in told} == {"download"}
    size = (folder / "model.safetensors").stat().st_size
    assert told[-1] == ("download", size, size)
    told.clear()
    download(SOURCE, lambda *each: told.append(each))
    assert told == []


@pytest.mark.usefixtures("published")
def test_an_error_of_a_progress_callback_is_the_callers():
    def stop(*_):
        raise ValueError("enough")

    with pytest.raises(ValueError, match=r"^enough$"):
        download(SOURCE, stop)


@pytest.mark.usefixtures("published")
def test_nothing_is_drawn(capfd):
    download(SOURCE)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("published")
def test_a_cut_in_mid_download_is_resumed(hub, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 500)
    hub.cut_at, hub.cuts = 1000, 1
    told = []
    snapshot = download(SOURCE, lambda *each: told.append(each))
    assert (snapshot.path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert "bytes=1000-" in [range_ for _, _, range_, _ in hub.asked]
    assert max(done for _, done, _ in told) == told[-1][2]


@pytest.mark.usefixtures("published")
def test_a_link_that_is_always_cut(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.cut_at, hub.cuts = 1000, 100
    with pytest.raises(HubUnavailable, match="run it again"):
        download(SOURCE)
    hub.cuts = 0
    before = len(hub.asked)
    with open_model(download(SOURCE)) as opened:
        assert opened.weights
    assert not any("vocab.txt" in path for _, path, *_ in hub.asked[before:])


def test_no_such_repository():
    with pytest.raises(HubModelNotFound, match=r"hf://lab/nothing is not on the hub, or not for you.*HF_TOKEN"):
        download(HubSource("lab/nothing"))


@pytest.mark.usefixtures("published")
def test_no_such_revision():
    with pytest.raises(HubModelNotFound, match="hf://lab/bert@v9 has no such revision"):
        download(HubSource(NAME, "v9"))


def test_a_name_that_the_library_refuses():
    with pytest.raises(InvalidName, match="check the name"):
        download(HubSource("lab/..bert"))


def test_a_gated_repository(hub, folder):
    hub.publish(NAME, folder, gate=True)
    with pytest.raises(HubAccessDenied, match="is gated: ask for access on its page"):
        download(SOURCE)


def test_a_private_repository_takes_the_token(hub, folder, monkeypatch):
    hub.publish(NAME, folder, token="hf_secret")
    with pytest.raises(HubModelNotFound):
        download(SOURCE)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    snapshot = download(SOURCE)
    assert "hf_secret" not in str(snapshot)
    assert {token for _, path, _, token in hub.asked if path.startswith("/cdn/")} == {None}


def test_a_token_is_in_no_error(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.status = 500
    with pytest.raises(HubUnavailable, match="status 500") as caught:
        download(SOURCE)
    told = "".join(traceback.format_exception(caught.value))
    assert "hf_secret" not in told
    assert hub.url not in told  # that of a large file is signed


@pytest.mark.parametrize(("status", "kind"), [(403, HubAccessDenied), (429, HubUnavailable), (503, HubUnavailable)])
@pytest.mark.usefixtures("published")
def test_a_hub_that_refuses(hub, status, kind):
    hub.status = status
    with pytest.raises(kind, match=str(status)):
        download(SOURCE)


def test_pickles_only(hub, folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    hub.publish(NAME, folder)
    with pytest.raises(PickleRefused, match=r"pickles only.*@refs/pr/N"):
        download(SOURCE)
    assert "pytorch_model.bin" not in hub.downloaded()


def test_no_weights(hub, folder):
    (folder / "model.safetensors").unlink()
    hub.publish(NAME, folder)
    with pytest.raises(ModelFolderError, match=r"holds no .safetensors file"):
        download(SOURCE)


def test_nobody_answers(hub):
    hub.close()
    with pytest.raises(HubUnavailable, match="cannot be reached"):
        download(SOURCE)


@pytest.mark.usefixtures("published")
def test_what_is_in_the_cache_is_found_without_a_hub(hub):
    told = download(SOURCE)
    hub.close()
    again = download(SOURCE)
    assert (again.path, again.origin) == (told.path, told.origin)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.usefixtures("published")
def test_what_is_in_the_cache_is_found_where_the_hub_has_no_time(hub, status):
    told = download(SOURCE)
    hub.status = status
    assert download(SOURCE).path == told.path


@pytest.mark.parametrize(("status", "kind"), [(401, HubAccessDenied), (403, HubAccessDenied), (404, HubModelNotFound)])
@pytest.mark.usefixtures("published")
def test_the_cache_does_not_hide_that_the_hub_refuses(hub, status, kind):
    download(SOURCE)
    hub.status = status
    with pytest.raises(kind, match="hf://lab/bert"):
        download(SOURCE)


@pytest.mark.usefixtures("published")
def test_offline(hub, monkeypatch):
    told = download(SOURCE)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    before = len(hub.asked)
    assert download(SOURCE).path == told.path
    with pytest.raises(HubUnavailable, match="HF_HUB_OFFLINE is set"):
        download(HubSource("lab/other"))
    assert len(hub.asked) == before


@pytest.mark.usefixtures("published")
def test_half_of_a_model_in_the_cache_is_none(monkeypatch):
    huggingface_hub.snapshot_download(NAME, allow_patterns=["*.json"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnavailable, match="HF_HUB_OFFLINE is set"):
        download(SOURCE)


@pytest.mark.usefixtures("published")
def test_a_full_disk_is_told_before(hub, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(5000, 4000, 1000))
    with pytest.raises(HubError, match="bytes of the hub's cache, whose disk has 1000; free some"):
        download(SOURCE)
    assert "model.safetensors" not in hub.downloaded()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up(code):
    with pytest.raises(HubError, match="hf://lab/bert: no space is left"), translated("hf://lab/bert"):
        raise OSError(code, os.strerror(code), "/somewhere")


@pytest.mark.usefixtures("published")
def test_a_cache_that_may_not_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(HubError, match="HF_HUB_CACHE"):
        download(SOURCE)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'arc-halo\[hub\]'"):
        locate("hf://lab/bert")


def test_the_library_is_not_loaded_for_files():
    script = "import sys, arc_halo.registry, arc_halo.formats.hub; print('huggingface_hub' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.usefixtures("published")
def test_blobs_that_repositories_share(tmp_path):
    """A second link on the way: snapshots/<commit>/x -> blobs/<etag> -> ../blobs/<two digits>/<digest>."""
    snapshot = download(SOURCE)
    cache = tmp_path / "hub-cache"
    blob = (snapshot.path / "vocab.txt").resolve()
    shared = cache / "blobs" / "ab" / "ab12"
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(shared)
    with pytest.raises(ModelFolderError, match="links out of the folder"):
        open_model(snapshot)
    (cache / "blobs" / ".huggingface-shared-blobs").write_text("1\n")
    with open_model(snapshot) as opened:
        assert opened.read_bytes("vocab.txt") == shared.read_bytes()


def test_a_snapshot_is_a_path(tmp_path):
    assert os.fspath(HubSnapshot(tmp_path, {})) == str(tmp_path)

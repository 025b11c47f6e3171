"""``arc-halo model import hf://...``, ``push``, and exports for the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.command_line import start
from tests.fixtures.hub import TOKEN

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.command_line import CommandLine
    from tests.fixtures.hub import Hub


@pytest.fixture
def commit(hub: Hub, bert_folder: Path) -> str:
    (bert_folder / "pytorch_model.bin").write_bytes(b"never")
    return hub.publish("lab/bert", bert_folder, "v1")


def test_import_from_the_hub(arc_halo: CommandLine, commit: str):
    said = arc_halo.says("model", "import", "hf://lab/bert@v1", "--name", "m")
    assert f"from hf://lab/bert, commit {commit}" in said
    assert "ignored, as no part of the model: .gitattributes, pytorch_model.bin" in said
    told = arc_halo.json("model", "show", "m")
    assert told["origin"] == {"source": "hf://lab/bert", "commit": commit, "revision": "v1"}


def test_import_in_a_process_of_its_own(arc_halo: CommandLine, commit: str):
    words = ["--url", arc_halo.url, "model", "import", "hf://lab/bert@v1", "--name", "m", "--json"]
    output, errors = start(*words, HF_TOKEN="hf_secret").communicate(timeout=120)
    assert commit in output
    assert errors == ""
    assert arc_halo.json("model", "list")[0]["name"] == "m"


def test_import_of_what_is_not_there(arc_halo: CommandLine, hub: Hub):
    assert "hf://lab/nothing is not on the hub" in arc_halo.error("model", "import", "hf://lab/nothing", "--name", "m")
    assert "write hf://ORG/NAME" in arc_halo.error("model", "import", "hf://nothing", "--name", "m")
    hub.close()
    assert "cannot be reached" in arc_halo.error("model", "import", "hf://lab/bert", "--name", "m")
    assert arc_halo.json("model", "list") == []


def test_models_of_files_are_from_nowhere(stored: CommandLine):
    assert stored.json("model", "show", "m")["origin"] is None
    assert "from hf" not in stored.says("model", "show", "m")


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the library's own upload
def test_push_says_what_it_did(stored: CommandLine, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    said = stored.says("model", "push", "m", "hf://lab/m")
    assert said.startswith(f"lab/m, commit {hub.repositories['lab/m'].names['main']}: 5 files")
    told = stored.json("model", "push", "m@1", "hf://lab/m", "--max-shard-size", "3kB", "--message", "Cut")
    assert "model.safetensors.index.json" in told["added"]
    assert told["deleted"] == ["model.safetensors"]
    assert "deleted: model-0" in stored.says("model", "push", "m", "hf://lab/m")
    assert hub.repositories["lab/m"].messages == ["Upload m@1", "Cut", "Upload m@1"]


def test_push_without_a_token(stored: CommandLine, hub: Hub):
    assert "HF_TOKEN" in stored.error("model", "push", "m", "hf://lab/m")
    assert hub.repositories == {}


def test_an_export_uploads_nothing(stored: CommandLine, hub: Hub):
    assert "model push m hf://lab/m" in stored.run("model", "export", "m", "hf://lab/m", code=2).output
    assert hub.asked == []


def test_export_as_the_hub_has_it(stored: CommandLine, tmp_path: Path):
    told = stored.json("model", "export", "m", tmp_path / "out", "--hub", "--max-shard-size", "3kB")
    names = {path["path"].rsplit("/", 1)[-1] for path in told["files"]}
    assert names >= {"README.md", ".gitattributes", "model.safetensors.index.json", "config.json"}
    assert "is no size" in stored.error("model", "export", "m", tmp_path / "out", "--max-shard-size", "big")

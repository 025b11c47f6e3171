"""``arc-halo model import hf://...``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.command_line import start

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

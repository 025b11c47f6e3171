"""Models out to the hub, and back."""

from __future__ import annotations

import sys

import huggingface_hub
import pytest

from arc_halo import connect
from arc_halo.errors import ConfigurationError, HubAccessDenied, HubError, HubModelNotFound, InvalidName, ModelNotFound
from arc_halo.formats.hf import open_model
from arc_halo.formats.hub import HubSource, download
from arc_halo.integrations.hub import push_folder, push_model
from arc_halo.registry import import_model
from tests.fixtures import gguf_models
from tests.fixtures.hub import ATTRIBUTES, TOKEN
from tests.fixtures.models import bert, write_folder

# The library's own: it gives an upload to its HTTP client by the older of two names.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def folder(tmp_path):
    return write_folder(bert(), tmp_path / "bert")


@pytest.fixture
def database(migrated_url, folder):
    """With a model ``bert@1``."""
    with connect(migrated_url) as database:
        with database.session() as session:
            import_model(session, folder, name="bert")
            session.commit()
        yield database


@pytest.fixture
def token(hub, monkeypatch):
    assert hub.asked == []  # the hub takes away what token there is
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.mark.usefixtures("token")
def test_what_is_pushed_is_what_was_imported(hub, database, folder):
    pushed = push_model(database, "bert", "hf://lab/bert")
    published = hub.files("lab/bert")
    assert {name: published[name] for name in published if name not in {"README.md", ".gitattributes"}} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert published[".gitattributes"] == ATTRIBUTES
    assert b"# bert" in published["README.md"]
    repository = hub.repositories["lab/bert"]
    assert (repository.visibility, repository.messages) == ("private", ["Upload bert@1"])
    assert pushed.commit == repository.names["main"]
    with open_model(download(HubSource("lab/bert"))) as opened, open_model(folder) as original:
        assert opened.tensors() == original.tensors()


@pytest.mark.usefixtures("token")
def test_one_commit_takes_the_place_of_other_weights(hub, database):
    push_model(database, "bert", "hf://lab/bert", max_shard_nbytes=3000)
    hub.repositories["lab/bert"].commit({**hub.files("lab/bert"), "encoder/model.safetensors": b"another"})
    assert "model.safetensors.index.json" in hub.files("lab/bert")
    pushed = push_model(database, "bert", "hf://lab/bert", message="One file")
    weights = {name for name in hub.files("lab/bert") if "safetensors" in name}
    assert weights == {"model.safetensors", "encoder/model.safetensors"}
    assert "model.safetensors.index.json" in pushed.deleted
    assert hub.repositories["lab/bert"].messages[-1] == "One file"


@pytest.mark.usefixtures("token")
def test_a_gguf_file_takes_no_place_of_safetensors(hub, database, tmp_path):
    path = gguf_models.write(tmp_path / "small-Q8_0.gguf", gguf_models.llama(), gguf_models.metadata())
    with database.session() as session:
        import_model(session, path, name="small")
        session.commit()
    push_model(database, "bert", "hf://lab/bert")
    weights = hub.files("lab/bert")["model.safetensors"]
    pushed = push_model(database, "small", "hf://lab/bert")
    assert "small-Q8_0.gguf" in pushed.added
    assert pushed.deleted == ()
    assert hub.files("lab/bert")["small-Q8_0.gguf"] == path.read_bytes()
    assert hub.files("lab/bert")["model.safetensors"] == weights


@pytest.mark.usefixtures("token")
def test_a_card_of_the_repository_stays(hub, database):
    hub.repository("lab/bert").commit({".gitattributes": b"mine", "README.md": b"# Mine"})
    pushed = push_model(database, "bert", "hf://lab/bert")
    assert hub.files("lab/bert")["README.md"] == b"# Mine"
    assert hub.files("lab/bert")[".gitattributes"] == b"mine"
    assert "README.md" not in pushed.added


@pytest.mark.usefixtures("token")
def test_an_imported_card_is_pushed(hub, database, folder):
    (folder / "README.md").write_text("# Imported")
    with database.session() as session:
        import_model(session, folder, name="bert")
        session.commit()
    hub.repository("lab/bert").commit({".gitattributes": b"", "README.md": b"# Mine"})
    push_model(database, "bert@2", "hf://lab/bert")
    assert hub.files("lab/bert")["README.md"] == b"# Imported"


@pytest.mark.usefixtures("token")
def test_a_branch_and_a_folder(hub, database, folder):
    hub.repository("lab/all").commit({"model.safetensors": b"another"}, "next")
    push_model(database, "bert", "hf://lab/all@next/encoder", private=False)
    published = hub.files("lab/all", "next")
    assert published["encoder/model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert published["model.safetensors"] == b"another"
    with pytest.raises(HubModelNotFound, match="no such revision"):
        push_model(database, "bert", "hf://lab/all@nowhere")


@pytest.mark.usefixtures("token")
def test_a_public_repository_is_asked_for(hub, database):
    push_model(database, "bert", "hf://lab/bert", private=False)
    assert hub.repositories["lab/bert"].visibility == "public"


def test_without_a_token(hub, database):
    with pytest.raises(HubAccessDenied, match="HF_TOKEN"):
        push_model(database, "bert", "hf://lab/bert")
    assert hub.repositories == {}


@pytest.mark.usefixtures("token")
def test_somebody_else_is_faster(hub, database):
    hub.overtaken = True
    with pytest.raises(HubError, match="changed the repository meanwhile"):
        push_model(database, "bert", "hf://lab/bert")
    assert "config.json" not in hub.files("lab/bert")


@pytest.mark.usefixtures("token")
def test_an_upload_that_is_refused(hub, database):
    hub.stored = False
    with pytest.raises(HubAccessDenied, match="403"):
        push_model(database, "bert", "hf://lab/bert")
    assert set(hub.files("lab/bert")) == {".gitattributes"}


@pytest.mark.usefixtures("token")
def test_what_cannot_be_pushed(hub, database, folder):
    with pytest.raises(ModelNotFound):
        push_model(database, "nothing", "hf://lab/bert")
    for name in ("x.safetensors", "x.gguf"):
        with pytest.raises(InvalidName, match="is a file"):
            push_folder(folder, f"hf://lab/bert/{name}", message="m")
    with pytest.raises(InvalidName, match="hf://ORG/NAME"):
        push_model(database, "bert", "lab/bert")
    assert hub.asked == []


@pytest.mark.usefixtures("token", "hub")
def test_bars_are_as_they_were(database, capfd):
    for disabled in (False, True):
        if disabled:
            huggingface_hub.utils.disable_progress_bars()
        push_model(database, "bert", "hf://lab/bert")
        assert huggingface_hub.utils.are_progress_bars_disabled() is disabled
    huggingface_hub.utils.enable_progress_bars()
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("token")
def test_no_transaction_waits_for_the_hub(hub, database):
    push_model(database, "bert", "hf://lab/bert")
    assert hub.asked
    assert database.engine.pool.checkedout() == 0


def test_without_the_library(database, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigurationError, match=r"arc-halo\[hub\]"):
        push_model(database, "bert", "hf://lab/bert")

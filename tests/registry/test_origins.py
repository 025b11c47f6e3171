"""Models that come from the hub: imported, noted, exported, derived from."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from sqlalchemy import event

from arc_halo.errors import HubModelNotFound
from arc_halo.formats.hub import HubSource, download
from arc_halo.registry import create_model, export_model, import_model, quantize_model
from arc_halo.registry.origins import ORIGIN_KEY, origin_of
from tests.fixtures.models import bert, write_folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(bert(), tmp_path / "bert", shards=2)


@pytest.fixture
def commit(hub, folder):
    """That of ``lab/bert``."""
    return hub.publish("lab/bert", folder)


def test_import_and_export_are_the_published_files(session, commit, folder, tmp_path):
    model = import_model(session, "hf://lab/bert@main", name="bert")
    assert origin_of(model) == {"source": "hf://lab/bert", "commit": commit, "revision": "main"}
    written = export_model(session, model, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in written} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_the_hub_is_not_asked_in_a_transaction(session, commit, hub):
    begun = []

    @event.listens_for(session, "after_begin")
    def note(*_):
        begun.append(len(hub.asked))

    import_model(session, "hf://lab/bert", name="bert")
    assert begun[0] == len(hub.asked)
    assert commit


@pytest.mark.usefixtures("commit")
def test_progress_begins_with_the_download(session):
    phases = []
    import_model(session, "hf://lab/bert", name="bert", progress=lambda phase, *_: phases.append(phase))
    assert list(dict.fromkeys(phases))[:3] == ["download", "hash", "store"]


@pytest.mark.usefixtures("hub")
def test_what_is_not_there_is_not_imported(session):
    with pytest.raises(HubModelNotFound):
        import_model(session, "hf://lab/nothing", name="m")


def test_a_snapshot_of_the_hubs_cache_is_a_folder(session, commit, folder, tmp_path):
    path = download(HubSource("lab/bert")).path
    assert path.name == commit
    assert all(file.is_symlink() for file in path.iterdir())
    model = import_model(session, path, name="bert")
    assert origin_of(model) is None
    export_model(session, model, tmp_path / "out")
    assert all((tmp_path / "out" / file.name).read_bytes() == file.read_bytes() for file in folder.iterdir())


def test_a_folder_in_a_snapshot_may_link_to_its_blobs(session, hub, tmp_path):
    hub.publish("lab/bert", write_folder(bert(), tmp_path / "all" / "encoder").parent)
    model = import_model(session, "hf://lab/bert/encoder", name="encoder")
    assert origin_of(model)["path"] == "encoder"


def test_an_origin_is_not_inherited(session, commit):
    model = import_model(session, "hf://lab/bert", name="bert")
    made = quantize_model(session, model, "int8", name="small")
    assert origin_of(model)["commit"] == commit
    assert origin_of(made) is None


def test_a_note_in_a_config_is_not_believed(session, tmp_path):
    config = bert().config | {ORIGIN_KEY: {"source": "hf://lab/bert", "commit": "0" * 40}}
    folder = write_folder(replace(bert(), config=config), tmp_path / "liar")
    assert origin_of(import_model(session, folder, name="liar")) is None


def test_no_note_is_exported(session, hub, folder, tmp_path):
    (folder / "config.json").unlink()
    hub.publish("lab/bert", folder)
    model = import_model(session, "hf://lab/bert", name="bert")
    assert origin_of(model)
    export_model(session, model, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_the_cache_may_go_when_the_model_is_stored(session, commit, tmp_path):
    model = import_model(session, "hf://lab/bert", name="bert")
    shutil.rmtree(tmp_path / "hub-cache")
    assert export_model(session, model, tmp_path / "out")
    assert commit


def test_arrays_have_no_origin(session, commit):
    assert origin_of(create_model(session, "m", bert().config, bert().arrays())) is None
    imported = import_model(session, "hf://lab/bert", name="bert")
    assert imported.architecture_config[ORIGIN_KEY]["commit"] == commit
    trained = create_model(session, "trained", imported.architecture_config, bert().arrays(seed=1))
    assert origin_of(trained) is None

"""Disks that are full: a typed error, nothing published, nothing half written, and all is well when there is space."""

from __future__ import annotations

import errno
import shutil
import subprocess
import tempfile
from contextlib import contextmanager

import huggingface_hub.constants
import numpy as np
import pytest

from arc_halo.database import connect
from arc_halo.database.embedded import EmbeddedServer
from arc_halo.errors import BlobStoreError, DatabaseUnavailable, DiskFull, EmbeddedServerError, FileNotWritten, HubError
from arc_halo.registry import create_model, export_model, import_model, load_model, quantize_model
from arc_halo.store import put as store_put
from arc_halo.store.cache import ReadCache
from arc_halo.store.verify import verify_database
from arc_halo.testing.databases import UNSAFE_AND_FAST
from arc_halo.testing.tiers import check, create
from tests.fixtures.models import bert, write_folder
from tests.fixtures.tensors import count, random_array, weights

MEBIBYTE = 1 << 20
SMALL_LOG = {"max_wal_size": "48MB", "min_wal_size": "32MB", "wal_compression": "off"}
SIZES = pytest.mark.parametrize("small_nbytes", [1 << 25, -1], ids=["one transaction", "uploaded"])
PUBLISHED = ("models", "model_files", "model_weights", "transformer_layers", "embeddings")


def noise(seed, mebibytes=2):
    """What no codec makes smaller."""
    return {f"t{index}": random_array(np.uint8, (MEBIBYTE,), seed * 100 + index) for index in range(mebibytes)}


@pytest.fixture
def impatient_connect(monkeypatch):
    monkeypatch.setenv("ARC_HALO_CONNECT_ATTEMPTS", "2")


@pytest.fixture
def make_server(home):
    """Start a server with its data, and its log, each on a disk of its own, or on none."""
    servers = []

    def make(data_disk=None, log_disk=None):
        server = EmbeddedServer(data_disk.folder / "home" if data_disk else home, UNSAFE_AND_FAST | SMALL_LOG)
        servers.append(server)
        connect(server.acquire(), migrate=True).close()
        if log_disk is not None:
            server.close()
            subprocess.run(["mv", server.data / "pg_wal", log_disk.folder], check=True)  # with its owner
            (server.data / "pg_wal").symlink_to(log_disk.folder / "pg_wal")
            server.acquire()
        return server

    yield make
    for server in servers:
        server.close()


def fill_up(database, first=1):
    """Create models until that fails; returns how many there are, and the error."""
    for number in range(first, 100):
        try:
            create(database, f"m{number}", noise(number))
        except (DiskFull, DatabaseUnavailable) as error:
            return number - 1, error
    raise AssertionError("the disk does not become full")


def published(database):
    with database.session() as session:
        return {table: count(session, table) for table in PUBLISHED}


def check_all(database, models):
    for number in range(1, models + 1):
        check(database, f"m{number}", noise(number))


@SIZES
def test_a_full_data_disk(small_disk, make_server, tmp_path, monkeypatch, small_nbytes):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", small_nbytes)
    disk, log_disk = small_disk(160), small_disk(256)
    folder = write_folder(bert(), tmp_path / "m", arrays=noise(99, 6))
    with connect(make_server(disk, log_disk).url()) as database:
        disk.fill(leave_nbytes=24 * MEBIBYTE)
        stored, error = fill_up(database)
        assert isinstance(error, DiskFull)
        assert (error.sqlstate, "free space on the server, then run the unit again" in str(error)) == ("53100", True)
        before = published(database)
        with database.session() as session:
            with pytest.raises(DiskFull):
                import_model(session, folder, name="imported")
            session.rollback()
            assert count(session, "models") == stored  # by the same connection
        assert published(database) == before
        check_all(database, stored)
        disk.free()
        for attempt in range(2):
            database.transaction(lambda session: import_model(session, folder, name="imported") and None)
            create(database, f"m{stored + 1 + attempt}", noise(stored + 1 + attempt))
        check_all(database, stored + 2)
        assert verify_database(database).faults == []


@pytest.mark.usefixtures("impatient_connect")
@SIZES
def test_a_full_log_disk(small_disk, make_server, monkeypatch, small_nbytes):
    """PostgreSQL panics, and cannot recover before there is space."""
    monkeypatch.setattr(store_put, "SMALL_NBYTES", small_nbytes)
    log_disk = small_disk(128)
    server = make_server(log_disk=log_disk)
    with connect(server.url()) as database:
        create(database, "m1", noise(1))
        log_disk.fill()
        stored, error = fill_up(database, 2)
        assert isinstance(error, DatabaseUnavailable | DiskFull)
        with pytest.raises(EmbeddedServerError, match=r"takes no connection|failed at pg_ctl"):
            EmbeddedServer(server.home, UNSAFE_AND_FAST | SMALL_LOG).acquire()
        log_disk.free()
        server.acquire()
        check_all(database, stored)
        create(database, f"m{stored + 1}", noise(stored + 1))
        check_all(database, stored + 1)
        assert verify_database(database).faults == []


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@SIZES
def test_a_full_blob_store(small_disk, migrated_url, monkeypatch, small_nbytes):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", small_nbytes)
    disk = small_disk(8)
    folder = disk.folder / "blobs"
    with connect(migrated_url, blob_url=folder.as_uri()) as database:
        create(database, "m1", noise(1))
        before = published(database)
        disk.fill(leave_nbytes=MEBIBYTE // 2)
        with database.session() as session:
            with pytest.raises(BlobStoreError, match=r"did not write .*No space left on device.*has space"):
                create_model(session, "m2", {}, noise(2))
            session.rollback()
            assert count(session, "models") == 1
        assert published(database) == before
        check_all(database, 1)
        assert all(len(content) in (MEBIBYTE, MEBIBYTE // 2) for content in files(folder).values())  # whole ones
        disk.free()
        create(database, "m2", noise(2))
        check_all(database, 2)
        assert verify_database(database).faults == []


@pytest.fixture
def model(session):
    return create_model(session, "m", {"model_type": "x"}, {"w": weights((1200, 700)), "noise": noise(5)["t0"]})


def test_a_full_folder_of_an_export(small_disk, session, model, tmp_path):
    disk = small_disk(12)
    whole = export_model(session, model, tmp_path / "whole")
    export_model(session, model, disk.folder / "out")
    before = files(disk.folder / "out")
    disk.fill(leave_nbytes=MEBIBYTE)
    for target in ("out", "new"):
        with pytest.raises(FileNotWritten, match=r"model\.safetensors cannot be written: No space left.*make space"):
            export_model(session, model, disk.folder / target)
    assert files(disk.folder / "out") == before  # what was there stays until there is another
    assert "model.safetensors" not in files(disk.folder / "new")
    assert not [name for name in files(disk.folder) if name.endswith(".partial")]
    disk.free()
    again = export_model(session, model, disk.folder / "new")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in whole]


def test_a_disk_without_place_for_a_folder_is_told_by_its_errno(small_disk, session, model):
    disk = small_disk(1)
    disk.fill()
    subprocess.run(["mount", "-o", "remount,nr_inodes=2", disk.folder], check=True)
    with pytest.raises(FileNotWritten, match=f"{disk.folder}.* cannot be written") as caught:
        export_model(session, model, disk.folder / "out")
    assert caught.value.errno == errno.ENOSPC


def test_a_full_cache_leaves_arrays_to_memory(small_disk, session, model, caplog):
    disk = small_disk(8)
    disk.fill(leave_nbytes=MEBIBYTE // 2)
    cache = ReadCache(disk.folder / "cache", 1 << 30)
    for _ in range(2):
        arrays = load_model(session, model, cache=cache)
        assert arrays["w"].tobytes() == weights((1200, 700)).tobytes()
    assert "cannot be written to" in caplog.text
    assert not [name for name in files(disk.folder) if name.endswith((".partial", ".safetensors"))]
    disk.free()
    load_model(session, model, cache=cache)
    assert cache.use().files == 2


def test_a_full_temporary_folder(small_disk, session, model, monkeypatch):
    disk = small_disk(8)
    disk.fill(leave_nbytes=MEBIBYTE // 4)
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    with pytest.raises(FileNotWritten, match=r"TMPDIR.* cannot be written: No space left"):
        quantize_model(session, model, name="small", include="w")
    assert files(disk.folder).keys() == {"ballast"}
    assert count(session, "models") == 1
    disk.free()
    assert quantize_model(session, model, name="small", include="w").version == "1"


@pytest.fixture
def hub_disk(small_disk, hub, monkeypatch):
    """The disk of the hub's cache; ``hub`` has set that already."""
    assert hub.asked == []
    disk = small_disk(8)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(disk.folder / "hub"))
    return disk


@contextmanager
def usage_of_others(is_foreseen):
    """Nobody else fills the disk, or somebody does after it was looked at."""
    with pytest.MonkeyPatch.context() as patch:
        if not is_foreseen:
            patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))
        yield


@pytest.mark.parametrize("is_foreseen", [True, False])
def test_a_full_cache_of_the_hub(hub_disk, hub, session, tmp_path, is_foreseen):
    source = write_folder(bert(), tmp_path / "m", arrays=noise(7, 3))
    hub.publish("lab/bert", source)
    hub_disk.fill(leave_nbytes=MEBIBYTE)
    said = "disk has [0-9]+; free some" if is_foreseen else "no space is left for it; free some"
    with (
        usage_of_others(is_foreseen),
        pytest.raises(HubError, match=f"hf://lab/bert.*{said}, or let HF_HUB_CACHE name a larger disk"),
    ):
        import_model(session, "hf://lab/bert", name="m")
    assert count(session, "models") == 0
    hub_disk.free()
    model = import_model(session, "hf://lab/bert", name="m")
    written = export_model(session, model, tmp_path / "out")
    assert all(path.read_bytes() == (source / path.name).read_bytes() for path in written)

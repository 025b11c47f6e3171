from __future__ import annotations

import datetime as dt
import os
import signal

import pytest
from sqlalchemy import text

from arc_halo.database import connect
from arc_halo.errors import BlobStoreError, BlobStoreNotConfigured, ConfigurationError, CorruptChunk, MissingChunk
from arc_halo.registry import check_model, read_tensor
from arc_halo.store.blobs import BlobStore, open_store
from arc_halo.store.owners import owner_of
from arc_halo.store.sweep import sweep
from arc_halo.store.verify import verify_database
from arc_halo.testing.tiers import check, create, example_tensors

DIGEST = bytes(range(32))
OWNER = "0123456789abcdef"
MOVE = "UPDATE arc_halo.tensor_data SET payload = :payload, blob_location = NULL WHERE blob_location = :at"
AT_ONCE = dt.timedelta(0)


@pytest.fixture
def blobs(file_url):
    return BlobStore(file_url)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "blobs"


@pytest.fixture
def tier(migrated_url, file_url):
    with connect(migrated_url, blob_url=file_url) as database:
        create(database, "m", example_tensors())
        yield database


def owner(database):
    with database.engine.connect() as connection:
        return owner_of(connection)


def faults(database):
    with database.session() as session:
        return [fault.message for fault in check_model(session, "m")]


def objects(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_an_object_is_named_by_its_chunk_and_never_twice(blobs):
    first, second = (blobs.put(DIGEST, b"payload", OWNER) for _ in range(2))
    assert first != second
    assert first.startswith(f"00/{DIGEST.hex()}-")
    assert {blob.location for blob in blobs.blobs(DIGEST)} == {first, second}
    assert not list(blobs.blobs(bytes(32)))


def test_no_more_is_read_than_was_asked_for(blobs, folder):
    location = blobs.put(DIGEST, b"payload", OWNER)
    (folder / location).write_bytes(b"payload" * 1000)
    assert blobs.get(location, 7) == b"payload"


def test_a_short_object_and_one_that_is_gone_are_told(blobs, folder):
    location = blobs.put(DIGEST, b"payload", OWNER)
    with pytest.raises(CorruptChunk, match="shorter"):
        blobs.get(location, 8)
    (folder / location).write_bytes(b"")
    with pytest.raises(CorruptChunk, match="shorter"):
        blobs.get(location, 7)
    blobs.delete([location, location])
    with pytest.raises(MissingChunk, match=location):
        blobs.get(location, 7)


@pytest.mark.parametrize(
    "read",
    [
        lambda blobs: blobs.get(f"00/{DIGEST.hex()}-{OWNER}-{OWNER}", 7),
        lambda blobs: list(blobs.blobs()),
        lambda blobs: list(blobs.blobs(DIGEST)),
        lambda blobs: blobs.delete([f"00/{DIGEST.hex()}-{OWNER}-{OWNER}"]),
    ],
    ids=["get", "list all", "list", "delete"],
)
def test_only_a_put_makes_the_folder(blobs, folder, read):
    folder.rmdir()
    with pytest.raises(BlobStoreError, match=rf"{folder.as_uri()} is no folder; is it mounted, or is the URL another"):
        read(blobs)
    assert not folder.exists()
    location = blobs.put(DIGEST, b"payload", OWNER)
    assert blobs.get(location, 7) == b"payload"


def test_a_folder_that_went_away_is_told_once(tier, folder):
    folder.rename(folder.with_name("blobs_"))
    with pytest.raises(BlobStoreError, match="is it mounted"):
        faults(tier)
    with pytest.raises(BlobStoreError, match="is it mounted"):
        verify_database(tier)
    assert not folder.exists()
    folder.with_name("blobs_").rename(folder)
    assert faults(tier) == []
    assert verify_database(tier).faults == []


@pytest.mark.parametrize(
    "url", ["ftp://host/path", "/a/folder", "", "https://host/bucket", "memory://", "file:///a%00b", "file://a/b"]
)
def test_other_places_are_refused(url):
    with pytest.raises(ConfigurationError, match="file://"):
        BlobStore(url)


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/prefix", "s3://bucket/prefix?token=secret"])
def test_secrets_of_a_url_are_not_shown(url, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    try:
        shown = repr(BlobStore(url))
    except ConfigurationError as error:
        shown = str(error)
    assert "secret" not in shown
    assert "s3://bucket/prefix" in shown


def test_a_store_that_does_not_answer_is_an_error_in_time(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(BlobStoreError, match="did not write"):
        BlobStore("s3://bucket/prefix").put(DIGEST, b"payload", OWNER)


def test_one_store_for_each_url(file_url):
    assert open_store(file_url) is open_store(file_url)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "is not in file://"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "shorter than"),
        (lambda path: path.write_bytes(b"\0" * path.stat().st_size), "checksum"),
        (lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]), "checksum"),
    ],
    ids=["missing", "short", "overwritten", "one bit"],
)
def test_what_happens_to_an_object_is_found(tier, folder, change, message):
    change(objects(folder)[0])
    (fault,) = faults(tier)
    assert message in fault


def test_swapped_objects_are_found(tier, folder):
    first, second = objects(folder)[:2]
    first_bytes, second_bytes = first.read_bytes(), second.read_bytes()
    first.write_bytes(second_bytes)
    second.write_bytes(first_bytes)
    assert len(faults(tier)) == 2


@pytest.mark.parametrize("location", ["../../../../etc/passwd", "file:///etc/passwd", "/etc/passwd", "ab/none"])
def test_a_forged_location_leads_nowhere(tier, location):
    with tier.session() as session:
        session.execute(
            text(
                "UPDATE arc_halo.tensor_data SET blob_location = :location"
                " WHERE digest = (SELECT min(digest) FROM arc_halo.tensor_data WHERE blob_location IS NOT NULL)"
            ),
            {"location": location},
        )
        session.commit()
    (fault,) = faults(tier)
    assert "root:" not in fault


@pytest.mark.usefixtures("tier")
def test_without_a_store_it_is_said_how_to_name_one(migrated_url):
    with connect(migrated_url) as database, database.session() as session:
        with pytest.raises(BlobStoreNotConfigured, match=r"^payloads are in a blob store; set ARC_HALO_BLOB_URL"):
            read_tensor(session, "m", "noise")
        assert read_tensor(session, "m", "bias").shape == (7,)  # too small to be away


def test_the_environment_names_the_store(migrated_url, file_url, folder, monkeypatch):
    monkeypatch.setenv("ARC_HALO_BLOB_URL", file_url)
    with connect(migrated_url) as database:
        create(database, "m", example_tensors())
        assert objects(folder)
        check(database, "m", example_tensors())


def test_a_payload_that_moves_while_it_is_read_is_looked_up_again(tier, monkeypatch):
    get = BlobStore.get

    def move_first(self, location, nbytes):
        payload = get(self, location, nbytes)
        monkeypatch.setattr(BlobStore, "get", get)
        with tier.session() as session:
            statement = (
                "UPDATE arc_halo.tensor_data SET payload = :payload, blob_location = NULL WHERE blob_location = :at"
            )
            session.execute(text(statement), {"payload": payload, "at": location})
            session.commit()
        sweep(tier.engine, self, grace=AT_ONCE)
        return get(self, location, nbytes)

    monkeypatch.setattr(BlobStore, "get", move_first)
    check(tier, "m", example_tensors())


def test_foreign_objects_are_left_and_counted(tier, folder):
    (folder / "notes.txt").write_text("mine")
    orphan = folder / f"ab/{'ab' * 32}-{owner(tier)}-{'0' * 16}"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"12345")
    planned = sweep(tier.engine, open_store(tier.blob_url), grace=AT_ONCE, dry_run=True)
    assert orphan.exists()
    swept = sweep(tier.engine, open_store(tier.blob_url), grace=AT_ONCE)
    assert planned == swept
    assert (swept.foreign, swept.orphans, swept.orphan_nbytes) == (1, 1, 5)
    assert (folder / "notes.txt").exists()
    assert not orphan.exists()


def test_young_orphans_stay(tier, folder):
    orphan = folder / f"ab/{'ab' * 32}-{owner(tier)}-{'0' * 16}"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"12345")
    assert sweep(tier.engine, open_store(tier.blob_url)).orphans == 0


def in_a_fork(work):
    """What a forked child makes of it; one that hangs is ended."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        signal.alarm(30)
        try:
            answer = work()
        except BaseException as error:  # noqa: BLE001  the parent raises what it is told
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as file:
        return file.read()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_a_forked_child_reads_and_writes_what_its_parent_used(tier):
    check(tier, "m", example_tensors())
    store = open_store(tier.blob_url)

    def work():
        check(tier, "m", example_tensors())
        create(tier, "child", example_tensors(seed=1))
        return store.start_put(DIGEST, b"by a store of the parent's", OWNER).result()

    location = in_a_fork(work)
    assert store.get(location, 5) == b"by a "
    check(tier, "child", example_tensors(seed=1))
    check(tier, "m", example_tensors())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_a_forked_child_is_told_where_a_store_in_a_cloud_cannot_be_used(s3_url):
    store = open_store(s3_url)
    location = store.put(DIGEST, b"payload", OWNER)
    assert "start workers by spawn" in in_a_fork(lambda: open_store(s3_url).get(location, 7).decode())
    assert store.get(location, 7) == b"payload"

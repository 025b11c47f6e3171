"""What the sweeper deletes, and what it must not."""

from __future__ import annotations

import datetime as dt
import os

import pytest
from sqlalchemy import text

from arc_halo.database import connect
from arc_halo.errors import BlobStoreError
from arc_halo.registry import create_model, delete_model, export_model, repack_model, repair
from arc_halo.store import prune
from arc_halo.store.blobs import BlobStore, open_store
from arc_halo.store.leases import OBJECTS_LOCK
from arc_halo.store.owners import owner_of
from arc_halo.store.sweep import Swept, sweep
from arc_halo.testing.tiers import check, create, example_tensors

AT_ONCE = dt.timedelta(0)
DAY_AGO = dt.datetime.now(dt.UTC).timestamp() - 86_400
OTHER = "0123456789abcdef"


def key(owner):
    return f"ab/{'ab' * 32}-{owner}-{'0' * 16}"


REQUESTS = text("SELECT count(*) FROM arc_halo.blob_deletions")
REQUEST = text("INSERT INTO arc_halo.blob_deletions (blob_location) VALUES (:location)")
OBJECTS_LOCKED = text("""
SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = :classid AND objid = :objid)
""")
LEASE = text(
    "INSERT INTO arc_halo.upload_leases (id, tenant_id, description, nbytes, started_at, expires_at)"
    " VALUES (arc_halo.uuid7(), 0, 'test', 0, now() - :age, now() + :left)"
)


@pytest.fixture
def tier(migrated_url, file_url):
    with connect(migrated_url, blob_url=file_url) as database:
        yield database


@pytest.fixture
def blobs(file_url):
    return open_store(file_url)


@pytest.fixture
def owner(tier):
    """What says of an object that it is of this database."""
    with tier.engine.connect() as connection:
        return owner_of(connection)


@pytest.fixture
def folder(blobs, tmp_path):
    assert blobs.name
    return tmp_path / "blobs"


@pytest.fixture
def let_go(tier, blobs):
    """A model was deleted and pruned: its objects wait for the sweeper."""
    create(tier, "m", example_tensors())
    tier.transaction(lambda session: delete_model(session, "m"))
    prune(tier.engine, blobs=blobs, grace=AT_ONCE)
    return len(list(blobs.blobs()))


def execute(database, statement, **parameters):
    with database.session() as session:
        session.execute(statement, parameters)
        session.commit()


def requests(database):
    with database.session() as session:
        return session.scalar(REQUESTS)


def leave(folder, location, *, when=DAY_AGO):
    """Put a file there that no row names."""
    path = folder / location
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"12345")
    os.utime(path, (when, when))
    return path


def test_readers_under_way_have_an_hour(tier, blobs, let_go):
    assert sweep(tier.engine, blobs) == Swept()
    assert len(list(blobs.blobs())) == let_go
    assert sweep(tier.engine, blobs, grace=AT_ONCE).requested == let_go
    assert requests(tier) == 0


def test_a_dry_run_deletes_nothing(tier, blobs, let_go):
    assert sweep(tier.engine, blobs, grace=AT_ONCE, dry_run=True) == Swept(requested=let_go)
    assert len(list(blobs.blobs())) == let_go == requests(tier)


def test_more_than_a_batch_is_deleted(tier, blobs, let_go, monkeypatch):
    monkeypatch.setattr("arc_halo.store.sweep.BATCH_ROWS", 2)
    assert let_go > 2
    assert sweep(tier.engine, blobs, grace=AT_ONCE).requested == let_go
    assert not list(blobs.blobs())


def test_a_crash_after_deleting_leaves_requests_that_do_no_harm(tier, blobs, let_go):
    blobs.delete([blob.location for blob in blobs.blobs()])
    assert sweep(tier.engine, blobs, grace=AT_ONCE).requested == let_go
    assert requests(tier) == 0


def test_a_store_that_refuses_is_asked_again_later(tier, blobs, let_go, monkeypatch):
    def refuse(*_):
        raise BlobStoreError("unplugged")

    with monkeypatch.context() as patched, pytest.raises(BlobStoreError):  # noqa: PT012  the crash is somewhere within
        patched.setattr(BlobStore, "_delete", refuse)
        sweep(tier.engine, blobs, grace=AT_ONCE)
    assert requests(tier) == let_go
    assert sweep(tier.engine, blobs, grace=AT_ONCE).requested == let_go


def test_two_sweepers_do_not_wait_for_each_other(tier, blobs, let_go):
    with tier.session() as other:
        other.execute(text("SELECT FROM arc_halo.blob_deletions ORDER BY id LIMIT 1 FOR UPDATE"))
        assert sweep(tier.engine, blobs, grace=AT_ONCE).requested == let_go - 1
    assert sweep(tier.engine, blobs, grace=AT_ONCE).requested == 1


@pytest.mark.parametrize("location", ["notes.txt", "../notes.txt", "/etc/passwd", "ab/notes"])
def test_a_forged_request_deletes_nothing(tier, blobs, folder, location):
    mine = [leave(folder, each) for each in ("notes.txt", "ab/notes", "../notes.txt")]
    execute(tier, REQUEST, location=location)
    sweep(tier.engine, blobs, grace=AT_ONCE)
    assert all(path.exists() for path in mine)
    assert requests(tier) == 0


def test_what_a_row_names_again_stays(tier, blobs):
    create(tier, "m", example_tensors())
    for blob in blobs.blobs():
        execute(tier, REQUEST, location=blob.location)
    sweep(tier.engine, blobs, grace=AT_ONCE)
    check(tier, "m", example_tensors())


def test_orphans_go_and_others_stay(tier, blobs, folder, owner):
    create(tier, "m", example_tensors())
    orphan, foreign = leave(folder, key(owner)), leave(folder, "notes.txt")
    assert sweep(tier.engine, blobs) == Swept(orphans=1, orphan_nbytes=5, foreign=1)
    assert (orphan.exists(), foreign.exists()) == (False, True)
    check(tier, "m", example_tensors())


def test_what_a_killed_process_left_unfinished_goes(tier, blobs, folder, owner):
    unfinished, foreign = leave(folder, f"{key(owner)}#12"), leave(folder, "ab/notes#1")
    assert sweep(tier.engine, blobs).orphans == 1
    assert (unfinished.exists(), foreign.exists()) == (False, True)


def test_orphans_younger_than_the_grace_stay(tier, blobs, folder, owner):
    leave(folder, key(owner), when=dt.datetime.now(dt.UTC).timestamp())
    assert sweep(tier.engine, blobs).orphans == 0
    assert sweep(tier.engine, blobs, grace=AT_ONCE).orphans == 1


def test_an_upload_keeps_its_objects_as_long_as_its_lease(tier, blobs, folder, owner):
    leave(folder, key(owner))
    execute(tier, LEASE, age=dt.timedelta(days=2), left=dt.timedelta(minutes=1))
    assert sweep(tier.engine, blobs, grace=AT_ONCE).orphans == 0
    execute(tier, text("UPDATE arc_halo.upload_leases SET expires_at = now() - interval '1 second'"))
    assert sweep(tier.engine, blobs, grace=AT_ONCE).orphans == 1


def test_a_transaction_under_way_keeps_its_objects(tier, blobs):
    with tier.session() as session:
        create_model(session, "m", {}, example_tensors())
        assert list(blobs.blobs())
        assert sweep(tier.engine, blobs, grace=AT_ONCE).orphans == 0
        session.commit()
    assert sweep(tier.engine, blobs, grace=AT_ONCE) == Swept()
    check(tier, "m", example_tensors())


def test_a_transaction_that_announced_nothing_keeps_its_objects(tier, blobs, owner):
    with tier.session() as session:
        session.execute(text("SELECT 1"))
        location = blobs.put(bytes(32), b"12345", owner)
        assert sweep(tier.engine, blobs, grace=AT_ONCE).orphans == 0
        session.rollback()
    assert sweep(tier.engine, blobs, grace=AT_ONCE).orphans == 1
    assert location not in {blob.location for blob in blobs.blobs()}


@pytest.fixture
def lock_seen_at_each_put(tier, monkeypatch):
    """For each object put whether somebody held the lock that keeps the sweeper from it."""
    put, seen = BlobStore.put, []

    def look_and_put(blobs, digest, payload, owner):
        with tier.session() as session:
            seen.append(session.scalar(OBJECTS_LOCKED, {"classid": OBJECTS_LOCK[0], "objid": OBJECTS_LOCK[1]}))
        return put(blobs, digest, payload, owner)

    monkeypatch.setattr(BlobStore, "put", look_and_put)
    return seen


def test_a_repack_keeps_the_sweeper_from_its_objects(tier, blobs, lock_seen_at_each_put):
    create(tier, "m", example_tensors())
    lock_seen_at_each_put.clear()
    repack_model(tier.engine, "m", compression="none", blobs=blobs)
    assert lock_seen_at_each_put
    assert all(lock_seen_at_each_put)


NOTE_COMMITS = """
CREATE TABLE public.commits (synchronous_commit text);
CREATE FUNCTION public.note_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.commits VALUES (current_setting('synchronous_commit'));
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER note_commit AFTER INSERT ON arc_halo.blob_deletions DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION public.note_commit()
"""


def test_a_repack_that_lets_go_of_objects_is_on_the_disk_before_the_sweeper_sees_it(tier, blobs):
    create(tier, "m", example_tensors())
    with tier.engine.begin() as connection:
        connection.exec_driver_sql(NOTE_COMMITS)
    repack_model(tier.engine, "m", compression="none", blobs=blobs)
    with tier.session() as session:
        commits = session.scalars(text("SELECT synchronous_commit FROM public.commits")).all()
    assert commits
    assert set(commits) == {"on"}


@pytest.mark.parametrize("copy", ["objects", "folder"])
def test_a_repair_keeps_the_sweeper_from_its_objects(tier, blobs, tmp_path, lock_seen_at_each_put, copy):
    create(tier, "m", example_tensors())
    with tier.session() as session:
        export_model(session, "m", tmp_path / "copy")
    for blob in list(blobs.blobs()):
        if copy == "objects":
            blobs.put(bytes.fromhex(blob.location[3:67]), blobs.get(blob.location, blob.nbytes), OTHER)
        blobs.delete([blob.location])
    lock_seen_at_each_put.clear()
    tier.transaction(lambda session: repair(session, "m", copies=[tmp_path / "copy"] if copy == "folder" else []))
    assert lock_seen_at_each_put
    assert all(lock_seen_at_each_put)
    check(tier, "m", example_tensors())


@pytest.fixture
def copied(database_server, tier, migrated_url, file_url):
    """A database that was copied from another, with rows that name the objects of that one."""
    create(tier, "m", example_tensors())
    tier.engine.dispose()
    url = database_server.create(migrated_url.database)
    with connect(url, blob_url=file_url) as database:
        yield database
    database_server.drop(url)


def test_two_databases_in_one_store_leave_each_others_objects(tier, copied, blobs):
    create(copied, "own", {"w": example_tensors()["noise"][::-1].copy()})
    before = {blob.location for blob in blobs.blobs()}
    for database in (tier, copied):
        swept = sweep(database.engine, blobs, grace=AT_ONCE)
        assert (swept.orphans, swept.requested, len(swept.others)) == (0, 0, 1)
    assert {blob.location for blob in blobs.blobs()} == before
    check(tier, "m", example_tensors())
    check(copied, "m", example_tensors())


def test_a_copy_that_lets_go_of_objects_does_not_delete_those_of_its_original(tier, copied, blobs):
    copied.transaction(lambda session: delete_model(session, "m"))
    prune(copied.engine, blobs=blobs, grace=AT_ONCE)
    waiting = requests(copied)
    assert waiting
    assert sweep(copied.engine, blobs, grace=AT_ONCE, dry_run=True).requested == 0
    assert sweep(copied.engine, blobs, grace=AT_ONCE).requested == 0
    assert requests(copied) == waiting
    check(tier, "m", example_tensors())


def test_a_database_that_was_moved_sweeps_what_it_had_before(copied, blobs, owner):
    copied.transaction(lambda session: delete_model(session, "m"))
    prune(copied.engine, blobs=blobs, grace=AT_ONCE)
    waiting = requests(copied)
    assert sweep(copied.engine, blobs, grace=AT_ONCE, formerly=[owner]).requested == waiting
    assert not list(blobs.blobs())


def test_an_identity_stays_and_copies_have_their_own(tier, copied, owner):
    with tier.engine.connect() as one, copied.engine.connect() as other:
        assert owner_of(one) == owner != owner_of(other)
        assert len(owner) == 16

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from sqlalchemy import text

from arc_halo.database import connect
from arc_halo.errors import ModelNotFound
from arc_halo.registry import check_model, create_model, export_model, import_model, repair
from arc_halo.store.blobs import BlobStore, open_store
from arc_halo.store.verify import verify_database
from arc_halo.testing.tiers import check, create, example_tensors
from tests.fixtures.tensors import weights
from tests.store.test_deltas import trained
from tests.store.test_verify import change

CHUNK_OF_M = """
SELECT c.digest FROM arc_halo.tensor_chunks AS c JOIN arc_halo.model_weights AS w ON w.tensor_id = c.tensor_id
  JOIN arc_halo.models AS m ON m.id = w.model_id WHERE m.name = 'm' AND c.chunk_index = 2
"""
FLIP = "UPDATE arc_halo.tensor_data SET payload = set_bit(payload, 77, 1 - get_bit(payload, 77))"


@pytest.fixture
def filled(database):
    create(database, "m", example_tensors())
    return database


@pytest.fixture
def copy(filled, tmp_path):
    with filled.session() as session:
        export_model(session, "m", tmp_path / "copy")
    return tmp_path / "copy"


def repaired(database, model=None, *copies):
    return database.transaction(lambda session: repair(session, model, copies=copies))


@pytest.mark.parametrize(
    "statement",
    [
        FLIP,
        "DELETE FROM arc_halo.tensor_data",
        "UPDATE arc_halo.tensor_data SET codec = 'lzma', dtype = 'F99', raw_nbytes = 5",
        "UPDATE arc_halo.tensor_data SET payload_checksum = payload_checksum + 1",
    ],
)
def test_a_folder_puts_everything_right(filled, copy, statement):
    change(filled, statement)
    done = repaired(filled, "m", copy)
    assert len(done.repaired) == 5
    assert done.missing == []
    check(filled, "m", example_tensors())
    assert verify_database(filled).faults == []


def test_an_object_that_is_swept_while_it_is_looked_at_is_passed_over(migrated_url, file_url, monkeypatch):
    blobs = open_store(file_url)
    listed = BlobStore.blobs

    def list_with_one_that_goes(store, digest=None):
        for blob in listed(store, digest):
            yield blob._replace(location=f"{blob.location[:-16]}{'0' * 16}")
            yield blob

    with connect(migrated_url, blob_url=file_url) as database:
        create(database, "m", example_tensors())
        for blob in list(blobs.blobs()):
            blobs.put(bytes.fromhex(blob.location[3:67]), blobs.get(blob.location, blob.nbytes), "0" * 16)
            blobs.delete([blob.location])
        monkeypatch.setattr(BlobStore, "blobs", list_with_one_that_goes)
        done = repaired(database, "m")
        assert (len(done.repaired), done.missing) == (4, [])
        check(database, "m", example_tensors())


def test_what_is_sound_is_left_alone(filled, copy):
    assert repaired(filled, None, copy).repaired == []


def test_only_the_bytes_of_the_digest_are_taken(filled, tmp_path):
    create(filled, "other", example_tensors(seed=9))
    with filled.session() as session:
        export_model(session, "other", tmp_path / "other")
    change(filled, FLIP)
    done = repaired(filled, "m", tmp_path / "other")
    assert done.repaired == []
    assert len(done.missing) == 5


def test_without_a_copy_it_says_what_stays_damaged(filled):
    change(filled, FLIP)
    assert len(repaired(filled).missing) == 5


def test_deltas_become_sound_with_their_base(database, tmp_path):
    before = {"matrix": weights((1200, 500))}
    after = {"matrix": trained(before["matrix"])}
    create(database, "m", before)
    create(database, "m", after)
    with database.session() as session:
        export_model(session, "m@1", tmp_path / "first")
    change(database, f"{FLIP} WHERE base_digest IS NULL")
    with database.session() as session:
        assert len(list(check_model(session, "m@2"))) == 3
    assert len(repaired(database, None, tmp_path / "first").repaired) == 3
    check(database, "m@2", after)


def test_another_model_helps_that_has_the_bytes_in_other_chunks(database):
    half = weights((3000, 384)).astype(ml_dtypes.bfloat16)
    create(database, "whole", {"w": weights((3000, 384))})
    create(database, "m", {"w": half})  # cut as its base of float32 is, into halves of a mebibyte
    with database.session() as session:
        create_model(session, "copy", {}, {"w": np.concatenate([half, half[:1]])}, base=None)
        session.commit()
        digest = session.scalar(text(CHUNK_OF_M))
    change(database, f"{FLIP} WHERE digest = decode('{digest.hex()}', 'hex')")
    assert repaired(database, "m", "copy").repaired == [digest.hex()]
    check(database, "m", {"w": half})


def test_a_copy_that_is_nothing_is_told(filled):
    change(filled, FLIP)
    with pytest.raises(ModelNotFound):
        repaired(filled, "m", "nowhere")


@pytest.fixture
def tier(migrated_url, file_url):
    with connect(migrated_url, blob_url=file_url) as database:
        create(database, "m", example_tensors())
        yield database


def test_another_object_of_the_blob_store_is_found_by_its_name(tier):
    store = open_store(tier.blob_url)
    for blob in list(store.blobs()):
        digest = bytes.fromhex(blob.location[3:67])
        store.put(digest, store.get(blob.location, blob.nbytes), "0123456789abcdef")
        store.delete([blob.location])
    done = repaired(tier, "m")
    assert len(done.repaired) == 4
    check(tier, "m", example_tensors())


def test_a_folder_puts_objects_right(tier, tmp_path):
    with tier.session() as session:
        export_model(session, "m", tmp_path / "copy")
    store = open_store(tier.blob_url)
    store.delete([blob.location for blob in store.blobs()])
    assert len(repaired(tier, "m", tmp_path / "copy").repaired) == 4
    check(tier, "m", example_tensors())


def test_an_import_again_does_not_hide_damage(filled, copy):
    change(filled, FLIP)
    filled.transaction(lambda session: import_model(session, copy, name="again").id)
    assert verify_database(filled).faults
    assert repaired(filled, "again", copy).missing == []

"""What callers may do with their session, their files and their pool while content is on its way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sqlalchemy import select, text

from arc_halo.database import connect
from arc_halo.errors import ConfigurationError, ConstraintViolation, TensorError, TensorNotFound
from arc_halo.registry import create_model, find_similar_tokens, import_model, iter_tensors, read_tensor
from arc_halo.schema import Embedding, Model, ModelWeight
from arc_halo.schema.columns import uuid7
from arc_halo.store import Wanted, get_arrays
from arc_halo.store import put as store_put
from tests.fixtures.models import bert, write_folder

WORDS = "embeddings.word_embeddings.weight"


@pytest.fixture
def folder(tmp_path):
    return write_folder(bert(), tmp_path / "bert")


def big(seed):
    return {"w": np.random.default_rng(seed).standard_normal((600, 1024)).astype(np.float32)}


def test_a_commit_between_tensors_leaves_the_pool_clean(database):
    with database.session() as session:
        model = create_model(session, "three", {}, {name: np.ones((3, 4), np.float32) for name in "abc"})
        session.commit()
        tensors = iter_tensors(session, model)
        next(tensors)
        session.commit()
        with database.engine.connect() as other:
            assert len(list(tensors)) == 2
            assert other.connection.driver_connection.info.transaction_status.name == "IDLE"


def test_big_imports_do_not_wait_for_the_callers_pool(migrated_url, monkeypatch):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", 0)
    for name, value in (("POOL_SIZE", 1), ("MAX_OVERFLOW", 0), ("POOL_TIMEOUT_SECONDS", 5)):
        monkeypatch.setenv(f"ARC_HALO_{name}", str(value))
    with connect(migrated_url) as database:

        def work(seed):
            return database.transaction(lambda session: create_model(session, f"m{seed}", {}, big(seed)).version)

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(work, (1, 2))) == ["1", "1"]


def test_a_save_that_writes_nothing_leaves_big_ones_to_short_transactions(database, monkeypatch):
    database.transaction(lambda session: create_model(session, "small", {}, {"a": np.ones(3, np.float32)}) and None)
    monkeypatch.setattr(store_put, "SMALL_NBYTES", 1 << 10)
    with database.session() as session, database.session() as other:
        create_model(session, "small", {}, {"a": np.ones(3, np.float32)})
        create_model(session, "big", {}, big(1))
        assert create_model(other, "same", {}, big(1)).version == "1"  # does not wait for the first commit


def test_vectors_are_those_of_the_stored_tensor_when_the_file_changes(session, folder):
    weights = folder / "model.safetensors"
    sound = weights.read_bytes()

    def overwrite(phase, done, total):
        if phase == "store" and done == total:
            weights.write_bytes(sound[:4096] + bytes(len(sound) - 4096))

    model = import_model(session, folder, name="changed", progress=overwrite)
    stored = session.scalars(select(Embedding.vector).where(Embedding.kind == "token").order_by(Embedding.row_index))
    assert np.array_equal(np.stack(stored.all()), read_tensor(session, model, WORDS))


def test_tokens_get_their_texts_from_a_later_import_with_a_tokenizer(session, folder):
    alone = import_model(session, folder / "model.safetensors", name="alone")
    with pytest.raises(LookupError):
        find_similar_tokens(session, alone, "king")
    model = import_model(session, folder, name="whole")
    assert find_similar_tokens(session, model, "king", 3) == find_similar_tokens(session, alone, "king", 3)


def test_an_unknown_policy_is_refused_for_known_content_too(session):
    create_model(session, "known", {}, big(1))
    with pytest.raises(ConfigurationError, match="fast"):
        create_model(session, "again", {}, big(1), compression="bogus")


@pytest.mark.parametrize("value", [[1.0, 2.0], None, "text"])
def test_what_is_no_array_is_refused_by_name(session, value):
    with pytest.raises(TensorError, match="'w' is a"):
        create_model(session, "none", {}, {"w": value})


def test_a_tensor_that_is_gone_is_named(session):
    with pytest.raises(TensorNotFound, match="'gone'"):
        list(get_arrays(session, [Wanted("gone", uuid7(), 4)]))


def test_names_are_those_of_our_tenant(session):
    session.add(Model(name="theirs", version="1", model_type="x", tenant_id=7))
    session.flush()
    assert create_model(session, "theirs", {}, {"a": np.ones(3, np.float32)}).version == "1"
    with pytest.raises(LookupError, match="theirs@2"):
        read_tensor(session, "theirs@2", "a")


@pytest.mark.parametrize("column", ["layer_id", "tied_to_id"])
def test_layer_and_tie_are_of_the_same_model(session, folder, column):
    mine, other = (import_model(session, folder, name=name) for name in ("mine", "other"))
    weight = session.scalars(select(ModelWeight).where(ModelWeight.model_id == mine.id)).first()
    foreign = session.scalars(select(ModelWeight).where(ModelWeight.model_id == other.id)).first()
    value = foreign.layer_id if column == "layer_id" else foreign.id
    statement = text(f"UPDATE arc_halo.model_weights SET {column} = :value WHERE id = :id")
    with pytest.raises(ConstraintViolation, match=column):
        session.execute(statement, {"value": value, "id": weight.id})


@pytest.mark.parametrize("text", ["\0", "king\0", "\ud800"])
def test_texts_that_no_column_holds_are_not_found(session, folder, text):
    model = import_model(session, folder, name="bert")
    with pytest.raises(LookupError):
        find_similar_tokens(session, model, text)
    with pytest.raises(LookupError):
        read_tensor(session, model, text)


@pytest.mark.parametrize("k", [0, -1])
def test_at_least_one_neighbour_is_asked_for(session, folder, k):
    model = import_model(session, folder, name="bert")
    with pytest.raises(TensorError, match="one or more"):
        find_similar_tokens(session, model, "king", k)

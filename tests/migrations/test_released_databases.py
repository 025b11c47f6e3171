"""The database of every release comes to head with all its rows, and gives its model back byte for byte."""

from __future__ import annotations

import gzip
import json
from hashlib import sha256
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import func, select

from arc_halo import connect, export_model, find_model, find_similar_tokens
from arc_halo.database.migrate import check, current, heads, upgrade
from arc_halo.database.url import libpq_string
from arc_halo.registry import check_model
from arc_halo.schema import Base, Model

FOLDER = Path(__file__).parents[1] / "golden" / "databases"
RELEASES = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.fixture(params=RELEASES)
def release(request):
    return request.param


@pytest.fixture
def expected(release):
    return json.loads((FOLDER / f"{release}.json").read_text(encoding="utf-8"))


@pytest.fixture
def released_url(database_url, release):
    """A database as that release left it."""
    dump = gzip.decompress((FOLDER / f"{release}.sql.gz").read_bytes())
    with psycopg.connect(libpq_string(database_url), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public")
        connection.execute(dump)
    return database_url


@pytest.fixture
def upgraded(released_url):
    upgrade(released_url)
    with connect(released_url) as database, database.session() as session:
        yield session


def test_it_stands_where_it_was_left(released_url, expected):
    assert current(released_url) == (expected["revision"],)


def test_it_comes_to_head(released_url):
    upgrade(released_url)
    assert current(released_url) == heads()
    check(released_url)


def test_no_row_is_lost(upgraded, expected):
    tables = Base.metadata.tables
    rows = {name: upgraded.scalar(select(func.count()).select_from(tables[name])) for name in expected["rows"]}
    assert rows == expected["rows"]


def test_every_class_reads_its_rows(upgraded):
    for mapper in Base.registry.mappers:
        assert len(upgraded.scalars(select(mapper.class_)).all()) == upgraded.scalar(
            select(func.count()).select_from(mapper.local_table)
        )


def test_the_model_is_sound_and_comes_out_as_it_went_in(upgraded, expected, tmp_path):
    model = find_model(upgraded, "released@production")
    assert list(check_model(upgraded, model)) == []
    exported = export_model(upgraded, model, tmp_path)
    assert {path.name: sha256(path.read_bytes()).hexdigest() for path in exported} == expected["files"]


def test_every_model_is_sound_and_is_what_it_was(upgraded, expected):
    models = {f"{each.name}@{each.version}": each for each in upgraded.scalars(select(Model))}
    assert [fault for model in models.values() for fault in check_model(upgraded, model)] == []
    weights = {name: model.weights_digest.hex() for name, model in models.items()}
    assert expected.get("weights", weights) == weights  # 0.1.0 did not write them down


def test_its_tokens_are_found(upgraded):
    assert len(find_similar_tokens(upgraded, "released", "king", k=3)) == 3

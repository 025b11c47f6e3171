"""Databases as releases left them, and as they are at head; `conftest` gives them to the tests of this folder."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import psycopg
import pytest

from arc_halo import connect
from arc_halo.database.migrate import upgrade
from arc_halo.database.url import libpq_string

FOLDER = Path(__file__).parents[1] / "golden" / "databases"
EXPECTED = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
RELEASES = list(EXPECTED)
SERVES = "0004"  # the first revision whose caches are served from
FUSES = "0005"  # the first revision whose operations can be run again


def _from(revision: str) -> pytest.MarkDecorator:
    releases = [each for each in EXPECTED if EXPECTED[each]["revision"] >= revision]
    return pytest.mark.parametrize("release", releases, indirect=True)


that_serve, that_fuse = _from(SERVES), _from(FUSES)
# Earlier ones have the run of rows.py alone, of which nothing could be loaded or compared yet.
that_train = pytest.mark.parametrize(
    "release", [each for each in EXPECTED if "training" in EXPECTED[each]], indirect=True
)


@pytest.fixture(params=RELEASES)
def release(request):
    return request.param


@pytest.fixture
def expected(release):
    return EXPECTED[release]


@pytest.fixture
def trained(expected):
    return expected["training"]


@pytest.fixture
def released_url(database_url, release):
    """A database as that release left it."""
    dump = gzip.decompress((FOLDER / f"{release}.sql.gz").read_bytes())
    with psycopg.connect(libpq_string(database_url), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public")
        connection.execute(dump)
    return database_url


@pytest.fixture
def opened(released_url):
    upgrade(released_url)
    with connect(released_url) as database:
        yield database


@pytest.fixture
def upgraded(opened):
    with opened.session() as session:
        yield session

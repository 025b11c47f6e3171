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


@pytest.fixture(scope="session")
def release_templates(database_server):
    """Databases to copy, each made when it is first asked for: a restore and an upgrade take seconds."""
    made = {}

    def template(release, *, is_upgraded):
        key = (release, is_upgraded)
        if key not in made:
            url = database_server.create(template(release, is_upgraded=False) if is_upgraded else "template1")
            if is_upgraded:
                upgrade(url)
            else:
                restore(url, release)
            made[key] = url
        return made[key].database

    yield template
    for url in made.values():
        database_server.drop(url)


def restore(url, release):
    """Make an empty database what a release left."""
    dump = gzip.decompress((FOLDER / f"{release}.sql.gz").read_bytes())
    with psycopg.connect(libpq_string(url), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public")
        connection.execute(dump)


@pytest.fixture
def released_url(database_server, release_templates, release):
    """A database as that release left it."""
    url = database_server.create(release_templates(release, is_upgraded=False))
    yield url
    database_server.drop(url)


@pytest.fixture
def opened(database_server, release_templates, release):
    """That database at head."""
    url = database_server.create(release_templates(release, is_upgraded=True))
    with connect(url) as database:
        yield database
    database_server.drop(url)


@pytest.fixture
def upgraded(opened):
    with opened.session() as session:
        yield session

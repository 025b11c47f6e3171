from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from arc_halo.errors import InvalidName, ModelExists, ModelNotFound
from arc_halo.registry import create_model, delete_model, find_model, set_alias
from arc_halo.schema import Model, ModelAlias
from tests.fixtures.tensors import weights


def make(session, name, version=None):
    return create_model(session, name, {}, {"w": weights((2,))}, version=version)


@pytest.fixture
def versions(session):
    return [make(session, "bert", version) for version in (None, "candidate", None)]


def test_a_name_alone_is_the_newest_version(session, versions):
    assert find_model(session, "bert") is versions[2]


@pytest.mark.parametrize(("reference", "index"), [("bert@1", 0), ("bert@candidate", 1), ("bert@2", 2)])
def test_a_version_is_named_behind_the_name(session, versions, reference, index):
    assert find_model(session, reference) is versions[index]


def test_models_and_ids_are_references(session, versions):
    assert find_model(session, versions[0]) is versions[0]
    assert find_model(session, versions[0].id) is versions[0]


def test_an_alias_moves(session, versions):
    set_alias(session, "bert@1", "production")
    assert find_model(session, "bert@production") is versions[0]
    set_alias(session, versions[2], "production")
    assert find_model(session, "bert@production") is versions[2]
    assert len(session.scalars(select(ModelAlias)).all()) == 1


def test_an_alias_belongs_to_one_name(session, versions):
    other = make(session, "gpt")
    set_alias(session, other, "production")
    set_alias(session, versions[0], "production")
    assert find_model(session, "gpt@production") is other
    assert find_model(session, "bert@production") is versions[0]


def test_an_alias_goes_with_its_model(session, versions):
    set_alias(session, versions[0], "production")
    delete_model(session, "bert@production")
    with pytest.raises(ModelNotFound, match="candidate, 2"):
        find_model(session, "bert@production")


def test_neither_an_alias_nor_a_version_hides_the_other(session, versions):
    with pytest.raises(ModelExists, match="candidate"):
        set_alias(session, versions[0], "candidate")
    set_alias(session, versions[0], "production")
    with pytest.raises(ModelExists, match="alias 'production'"):
        make(session, "bert", "production")


@pytest.mark.parametrize("alias", ["", " ", "a@b", "a\0b", "\x1b[2J", "a" * 201, "\ud800"], ids=repr)
def test_an_alias_that_cannot_be_referred_to_is_refused(session, versions, alias):
    with pytest.raises(InvalidName, match="alias"):
        set_alias(session, versions[0], alias)


@pytest.mark.parametrize(
    "reference", ["gpt", "gpt@1", "bert@9", "@", "bert@", "@1", "", "bert@1@1", "a\0", "\ud800"], ids=repr
)
@pytest.mark.usefixtures("versions")
def test_what_is_not_there_is_said_with_what_is(session, reference):
    with pytest.raises(ModelNotFound, match=r"there are bert|versions of 'bert' are 1|printable"):
        find_model(session, reference)


def test_of_many_versions_the_newest_are_named(session):
    for _ in range(12):
        make(session, "m")
    with pytest.raises(ModelNotFound, match=r"versions of 'm' are \.\.\., 3, 4, .*, 12$"):
        find_model(session, "m@13")


def test_an_unknown_id(session):
    with pytest.raises(ModelNotFound):
        find_model(session, uuid.uuid4())


def test_versions_of_concurrent_models_are_numbered_without_a_gap(database):
    def unit(_):
        return database.transaction(lambda session: make(session, "busy").version)

    with ThreadPoolExecutor(6) as pool:
        given = list(pool.map(unit, range(18)))
    assert sorted(map(int, given)) == list(range(1, 19))


def test_a_number_freed_by_a_rollback_is_given_again(database):
    with database.session() as session:
        assert make(session, "m").version == "1"
        session.rollback()
        assert make(session, "m").version == "1"
        session.commit()
        assert session.scalars(select(Model.version)).all() == ["1"]

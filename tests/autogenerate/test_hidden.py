"""Bodies that name what goes are told of."""

from __future__ import annotations

import logging

import pytest
from sqlalchemy import Column, Integer, Table

from arc_halo.autogenerate import declare
from tests.autogenerate.project import new_metadata

BODY = (
    "CREATE FUNCTION app.reader() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT count(*) FROM {0}); END $$"
)
VIEW = "CREATE VIEW app.v_items AS SELECT id FROM app.items"
ONE = "CREATE FUNCTION app.one() RETURNS integer LANGUAGE sql RETURN 1"


def declaring(*objects, table=False):
    metadata = new_metadata()
    if table:
        Table("extra", metadata, Column("id", Integer, primary_key=True))
    declare(metadata, *objects)
    return metadata


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("app.v_items", {"objects": (VIEW,)}, {"objects": ()}),
        ("app.extra", {"objects": (), "table": True}, {"objects": ()}),
        ("app.one", {"objects": (ONE,)}, {"objects": ()}),
    ],
)
def test_a_body_that_names_what_goes(project, caplog, name, before, after):
    body = BODY.format("app.one() AS one" if name == "app.one" else name)
    project.migrate(declaring(body, *before.pop("objects"), **before))
    with caplog.at_level(logging.WARNING, "alembic.autogenerate.arc_halo"):
        project.revise(declaring(body, *after["objects"]))
    assert f"function app.reader() names {name} in its body" in caplog.text


@pytest.mark.parametrize("other", ["app.v_items_too", "x_app.v_items", 'app."v_items more"'])
def test_other_names_are_others(project, caplog, other):
    body = BODY.format(other)
    project.migrate(declaring(body, VIEW))
    with caplog.at_level(logging.WARNING, "alembic.autogenerate.arc_halo"):
        project.revise(declaring(body))
    assert "in its body" not in caplog.text


def test_what_is_made_again_is_not_gone(project, caplog):
    body = BODY.format("app.v_items")
    project.migrate(declaring(body, VIEW))
    with caplog.at_level(logging.WARNING, "alembic.autogenerate.arc_halo"):
        written = project.revise(declaring(body, VIEW.replace("SELECT id", "SELECT name, id")))
    assert "DROP VIEW" in written
    assert "in its body" not in caplog.text

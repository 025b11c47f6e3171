"""How rows look in a notebook."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import ProgrammingError

from arc_halo import create_model, find_similar_tokens, import_model
from arc_halo.registry.embeddings import Match, Matches
from arc_halo.schema import Model, Tensor
from arc_halo.schema.html import html_table
from tests.fixtures.models import bert, write_folder

EVIL = "<script>alert('&')</script>"
ESCAPED = "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;"


@pytest.fixture
def model(session):
    small = bert()
    return create_model(session, "m", small.config, small.arrays())


def test_a_model_shows_sizes_and_layers(model):
    shown = model._repr_html_()
    assert shown.startswith("<b>Model m@1</b>, bert, initialized<br>")
    assert f"{model.parameter_count:,} parameters" in shown
    assert "encoder.layer.0 ... encoder.layer.1 (2x)" in shown


def test_a_model_takes_two_queries(session, model):
    sent = []
    event.listen(session.connection(), "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    model._repr_html_()
    assert len(sent) == 2


def test_a_model_without_a_session_shows_what_it_knows(session, model):
    session.expunge(model)
    assert model._repr_html_() == "<b>Model m@1</b>, bert, initialized"
    assert Model(name="new", version="1")._repr_html_() == "<b>Model new@1</b>"
    assert Model()._repr_html_() == "<b>Model @</b>"


def test_a_model_is_not_flushed_by_being_shown(session, model):
    other = Model(name="pending")  # no version: a flush would fail
    session.add(other)
    assert model._repr_html_()
    session.expunge(other)


def test_a_model_of_a_failed_transaction_does_not_raise(session, model):
    with pytest.raises(ProgrammingError):
        session.execute(text("SELECT nonsense"))
    assert model._repr_html_() == "<b>Model m@1</b>, bert, initialized"


def test_names_are_escaped():
    model = Model(name=EVIL, version="1", model_type=EVIL)
    assert model._repr_html_() == f"<b>Model {ESCAPED}@1</b>, {ESCAPED}"
    assert ESCAPED in Matches([Match(EVIL, 1, 0.5, uuid.uuid4())])._repr_html_()
    assert EVIL not in html_table([EVIL], [[EVIL]])


@pytest.mark.usefixtures("model")
def test_a_tensor_shows_its_statistics(session):
    tensor = session.scalars(select(Tensor).where(Tensor.dtype == "F32").limit(1)).one()
    shown = tensor._repr_html_()
    assert shown.startswith(f"<b>Tensor F32 {tuple(tensor.shape)}</b>, ")
    assert f'<td style="text-align:right">{tensor.mean:.4g}</td>' in shown


@pytest.mark.usefixtures("model")
def test_a_tensor_without_a_session_sends_no_query(session):
    tensor = session.scalars(select(Tensor).limit(1)).one()
    session.expire(tensor)
    session.expunge(tensor)
    assert tensor._repr_html_() == "<b>Tensor  </b>"
    assert Tensor()._repr_html_() == "<b>Tensor  </b>"


def test_matches_are_a_table(session, tmp_path):
    model = import_model(session, write_folder(bert(), tmp_path / "bert"), name="m")
    matches = find_similar_tokens(session, model, "king", 3)
    assert matches._repr_html_().count("<tr>") == 4
    assert isinstance(matches, list)

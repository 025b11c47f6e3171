"""Models, layers and what they are counted to be."""

import pytest
from sqlalchemy import Text, cast, func, select

from arc_halo.errors import ConstraintViolation
from arc_halo.schema import AttentionHead, Model, ModelAlias, ModelWeight, Tensor, TransformerLayer
from tests.schema.rows import add, add_chunk, add_layer, add_model, add_tensor, add_weight


@pytest.fixture
def counted(session):
    """100 parameters, 70 of them trainable; a tie and a buffer that do not count."""
    model = add_model(session)
    embedding = add_weight(session, model, "embedding", add_tensor(session, 70), category="embedding")
    add_weight(session, model, "head", embedding.tensor, tied_to=embedding)
    add_weight(session, model, "bias", add_tensor(session, 30), category="bias", is_trainable=False)
    add_weight(session, model, "positions", add_tensor(session, 5, dtype="I64", nbytes=40), category="buffer")
    return model


def test_counts_agree_between_objects_select_and_function(session, counted):
    total = func.arc_halo.calculate_model_parameters(counted.id).table_valued("total", "trainable")
    by_select = select(Model.parameter_count, Model.trainable_parameter_count).where(Model.id == counted.id)
    assert (counted.parameter_count, counted.trainable_parameter_count) == (100, 70)
    assert session.execute(by_select).one() == (100, 70)
    assert session.execute(select(total.c.total, total.c.trainable)).one() == (100, 70)


def test_counts_of_one_model_are_not_mixed_with_those_of_another(session, counted):
    other = add_model(session, "other")
    add_weight(session, other, "w", add_tensor(session, 9))
    found = session.execute(select(Model.name, Model.parameter_count).order_by(Model.name)).all()
    assert found == [("model", 100), ("other", 9)]
    assert session.scalars(select(Model).where(Model.parameter_count > 50)).one() is counted


def test_the_function_gives_zeroes_for_a_model_without_weights(session):
    model = add_model(session)
    as_text = cast(func.arc_halo.calculate_model_parameters(model.id), Text)
    assert session.scalar(select(as_text)) == "(0,0)"
    assert model.parameter_count == model.nbytes == model.stored_nbytes == 0


def test_nbytes_count_ties_once_and_buffers_too(session, counted):
    assert counted.nbytes == 4 * 100 + 40
    assert session.scalar(select(Model.nbytes).where(Model.id == counted.id)) == 440


def test_stored_nbytes_count_a_shared_chunk_once(session):
    model = add_model(session)
    for name in ("one", "two"):
        tensor = add_weight(session, model, name, add_tensor(session)).tensor
        add_chunk(session, tensor, 0, b"shared")
        add_chunk(session, tensor, 1, name.encode())
    assert model.stored_nbytes == len(b"shared" + b"one" + b"two")


def test_name_and_version_are_unique(session):
    add_model(session)
    with pytest.raises(ConstraintViolation) as caught:
        add_model(session)
    assert caught.value.constraint == "uq_models_tenant_id_name_version"


def test_an_alias_names_a_version_of_its_own_model(session):
    model = add_model(session)
    add(session, ModelAlias(name="model", alias="production", model_id=model.id))
    assert model.aliases[0].alias == "production"
    with pytest.raises(ConstraintViolation):
        add(session, ModelAlias(name="other", alias="production", model_id=model.id))


def test_layers_form_a_tree_within_one_model(session):
    model = add_model(session)
    block = add_layer(session, model, "layers.0")
    attention = add_layer(session, model, "layers.0.attention", layer_type="attention", parent=block, position=1)
    session.expire_all()
    assert attention.parent is block
    assert block.children == [attention]
    with pytest.raises(ConstraintViolation):
        add_layer(session, add_model(session, "other"), "layers.0", parent_id=block.id)


def test_a_head_owns_a_part_of_a_projection(session):
    model = add_model(session)
    layer = add_layer(session, model, "attention", layer_type="attention")
    weight = add_weight(session, model, "q", add_tensor(session), layer=layer)
    part = {"query_weight": weight, "query_axis": 0, "query_start": 0, "query_stop": 2}
    head = add(session, AttentionHead(layer=layer, head_index=0, head_dim=2, kv_group=0, **part))
    assert layer.heads == [head]
    with pytest.raises(ConstraintViolation):
        add(session, AttentionHead(layer=layer, head_index=1, head_dim=2, kv_group=0, **{**part, "query_stop": 0}))


def test_deleting_a_model_takes_everything_but_the_tensors(session, counted):
    add_layer(session, counted, "layers.0")
    session.expire_all()
    assert counted.layers  # loaded or not: the database deletes them, the ORM must not detach them first
    session.delete(counted)
    session.flush()
    left = [session.scalar(select(func.count()).select_from(each)) for each in (TransformerLayer, ModelWeight, Tensor)]
    assert left == [0, 0, 3]

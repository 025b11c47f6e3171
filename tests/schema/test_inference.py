"""Caches and what is known of sessions."""

import struct

import pytest
from sqlalchemy import func, select

from arc_halo.errors import ConstraintViolation
from arc_halo.schema import (
    AttentionPattern,
    CacheNamespace,
    InferenceSession,
    KVCacheBlock,
    KVCachePayload,
    KVCacheStatistics,
)
from tests.schema.rows import add, add_block, add_layer, add_model, add_namespace, add_tensor, digest


@pytest.fixture
def block(session):
    block = add_block(session, add_namespace(session), 0)
    key = {"tenant_id": block.tenant_id, "namespace_id": block.namespace_id, "block_hash": block.block_hash}
    payload = {"key_payload": b"k", "value_payload": b"v", "key_digest": digest("k"), "value_digest": digest("v")}
    add(session, KVCachePayload(**key, layer_index=0, codec="raw", **payload))
    add(session, KVCacheStatistics(**key))
    return block


def test_a_block_takes_payloads_and_statistics_with_it(session, block):
    session.delete(block)
    session.flush()
    assert session.scalar(select(func.count()).select_from(KVCachePayload)) == 0
    assert session.scalar(select(func.count()).select_from(KVCacheStatistics)) == 0


@pytest.mark.usefixtures("block")
def test_payloads_are_not_loaded_by_accident(session):
    session.expire_all()
    with pytest.raises(Exception, match="raiseload"):
        _ = session.scalars(select(KVCachePayload)).one().key_payload


def test_a_namespace_needs_the_digest_of_its_weights(session):
    namespace = add_namespace(session)
    namespace.weights_digest = None
    with pytest.raises(ConstraintViolation):
        session.flush()


@pytest.mark.parametrize(
    "columns", [{"parent_hash": None}, {"token_ids": b""}, {"token_ids": b"12345"}, {"block_hash": b"short"}]
)
def test_a_block_must_be_well_formed(session, columns):
    namespace = add_namespace(session)
    add_block(session, namespace, 0)
    with pytest.raises(ConstraintViolation):
        add_block(session, namespace, 1, **columns)


def test_a_block_stands_behind_its_parent_and_goes_with_it(session):
    namespace = add_namespace(session)
    with pytest.raises(ConstraintViolation), session.begin_nested():
        add_block(session, namespace, 1)
    first = add_block(session, namespace, 0)
    for number in (1, 2):
        add_block(session, namespace, number)
    session.delete(first)
    session.flush()
    assert session.scalar(select(func.count()).select_from(KVCacheBlock)) == 0


def test_token_ids_can_be_shown(session):
    block = add_block(session, add_namespace(session), 0, token_ids=struct.pack(">3i", 0, 30521, 2**31 - 1))
    assert session.scalar(select(func.arc_halo.token_ids(KVCacheBlock.token_ids))) == [0, 30521, 2**31 - 1], block


def test_a_namespace_belongs_to_one_tenant(session):
    namespace = add_namespace(session)
    with pytest.raises(ConstraintViolation):
        add_block(session, namespace, 0, tenant_id=1)
    assert CacheNamespace.__table__.primary_key.columns.keys()[0] == "tenant_id"


def test_an_attention_summary_has_its_top_keys_for_each_token(session):
    model = add_model(session)
    place = {
        "inference_session": add(session, InferenceSession(model=model)),
        "layer": add_layer(session, model, "attention", layer_type="attention"),
        "request_number": 0,
        "token_ids": [5, 6],
        "mean_entropy": 0.5,
        "mean_distance": 1.0,
        "first_token_share": 0.25,
        "top_count": 1,
    }
    kept = {"top_positions": [0, 0], "top_weights": [1.0, 0.5]}
    pattern = add(session, AttentionPattern(**place, head_index=0, **kept, tensor=add_tensor(session)))
    assert pattern.inference_session.attention_patterns == [pattern]
    with pytest.raises(ConstraintViolation):
        add(session, AttentionPattern(**place, head_index=1, top_positions=[0], top_weights=[1.0]))

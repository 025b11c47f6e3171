"""The layer tree, blocks that are alike shown once."""

from __future__ import annotations

import pytest
from sqlalchemy import event

from arc_halo import create_model, set_trainable
from arc_halo.schema.outline import outline
from tests.fixtures import models


def stored(session, small):
    return create_model(session, "m", small.config, small.arrays())


def test_blocks_that_are_alike_are_one_branch(session):
    branches = outline(session, stored(session, models.bert(blocks=3)).id)
    assert [each.label for each in branches] == ["embeddings", "encoder.layer.0 ... encoder.layer.2 (3x)", "pooler"]
    assert (branches[1].count, branches[1].head_count, branches[1].layer_type) == (3, 4, "block")


def test_a_block_that_is_trained_otherwise_stands_alone(session):
    model = stored(session, models.bert(blocks=3))
    set_trainable(session, model, "encoder.layer.0.*", trainable=False)
    labels = [each.label for each in outline(session, model.id)]
    assert labels[1:3] == ["encoder.layer.0", "encoder.layer.1 ... encoder.layer.2 (2x)"]


@pytest.mark.parametrize("small", [models.bert(), models.gpt2(), models.llama(), models.qwen_moe(), models.unknown()])
def test_it_adds_up_to_the_model(session, small):
    model = stored(session, small)
    branches = outline(session, model.id)
    for name in ("parameter_count", "trainable_parameter_count", "nbytes"):
        assert sum(each.count * getattr(each, name) for each in branches) == getattr(model, name)


def test_experts_fold_within_their_block(session):
    _, blocks, *_ = outline(session, stored(session, models.qwen_moe(experts=4)).id)
    mixture = next(each for each in blocks.children if each.first == "mlp")
    experts = next(each for each in mixture.children if each.first == "experts")
    assert [each.label for each in experts.children] == ["0 ... 3 (4x)"]


def test_one_query_whatever_the_size(session):
    model = stored(session, models.bert(blocks=8))
    sent = []
    event.listen(session.connection(), "before_cursor_execute", lambda *arguments: sent.append(arguments[2]))
    outline(session, model.id)
    assert len(sent) == 1

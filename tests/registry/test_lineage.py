from __future__ import annotations

import uuid
from itertools import pairwise

import pytest

from arc_halo.errors import LineageError, ModelNotFound
from arc_halo.registry import (
    add_lineage,
    ancestors_of,
    children_of,
    create_model,
    family_of,
    import_model,
    parents_of,
)
from tests.fixtures.models import bert, write_folder
from tests.fixtures.tensors import counts, weights


@pytest.fixture
def models(session):
    return [create_model(session, name, {}, {"w": weights((3, 3), seed)}) for seed, name in enumerate("abcd")]


def test_parents_and_family(session, models):
    base, tuned, merged, _ = models
    add_lineage(session, tuned, base, "finetune", {"steps": 20})
    add_lineage(session, merged, tuned, "merge")
    add_lineage(session, merged, base, "merge")
    assert list(parents_of(session, merged)) == [base, tuned]
    assert list(parents_of(session, base)) == []
    assert [model.name for model in family_of(session, tuned)] == ["a", "b", "c"]


def test_children_and_ancestors(session, models):
    base, tuned, merged, other = models
    for child, parent in ((tuned, base), (merged, tuned), (merged, other), (merged, base)):
        add_lineage(session, child, parent, "merge")
    assert list(children_of(session, base)) == [tuned, merged]
    assert list(children_of(session, merged)) == []
    assert list(ancestors_of(session, merged)) == [base, tuned, other]
    assert list(ancestors_of(session, base)) == []


def test_versions_of_a_name_are_family(session, models):
    second = create_model(session, "a", {}, {"w": weights((3, 3), 9)})
    assert list(family_of(session, "a@1")) == [models[0], second]


def test_what_is_said_again_replaces_what_was_said(session, models):
    first = add_lineage(session, models[1], models[0], "finetune", {"steps": 20})
    again = add_lineage(session, "b", "a@1", "finetune", {"steps": 30})
    assert (first.id, again.recipe) == (again.id, {"steps": 30})


@pytest.mark.parametrize("length", [1, 2, 3])
def test_nothing_is_made_from_itself(session, models, length):
    for parent, child in pairwise(models[:length]):
        add_lineage(session, child, parent, "finetune")
    with pytest.raises(LineageError, match="made from it"):
        add_lineage(session, models[0], models[length - 1], "copy")


def test_a_parent_that_is_not_there_is_told_before_any_work(session, tmp_path):
    before = counts(session)
    with pytest.raises(ModelNotFound):
        import_model(session, write_folder(bert(), tmp_path / "m"), name="m", parent="none")
    assert counts(session) == before


def test_an_import_says_what_the_model_was_trained_from(session, tmp_path):
    folder = write_folder(bert(), tmp_path / "m")
    base = import_model(session, folder, name="base")
    tuned = import_model(session, folder, name="tuned", parent="base@1")
    assert list(parents_of(session, tuned)) == [base]


def test_an_import_that_is_run_again_with_its_id_is_done_once(session, tmp_path):
    folder = write_folder(bert(), tmp_path / "m")
    op_id = uuid.uuid4()
    first = import_model(session, folder, name="m", op_id=op_id)
    again = import_model(session, folder, name="m", op_id=op_id)
    assert first is again
    assert (first.id, first.version) == (op_id, "1")

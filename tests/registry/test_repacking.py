from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from sqlalchemy import text

from arc_halo.errors import ModelNotFound
from arc_halo.registry import add_lineage, create_model, repack_family, repack_model
from arc_halo.testing.tiers import check
from tests.fixtures.tensors import weights
from tests.store.test_deltas import trained

DEPTHS = text("""
SELECT m.version, max(d.depth) FROM arc_halo.models AS m JOIN arc_halo.model_weights AS w ON w.model_id = m.id
  JOIN arc_halo.tensor_chunks AS c ON c.tensor_id = w.tensor_id JOIN arc_halo.tensor_data AS d ON d.digest = c.digest
 GROUP BY m.version ORDER BY m.version
""")


def first_version():
    return {"matrix": weights((1200, 500), 1, ml_dtypes.bfloat16), "head": weights((200, 300), 2), "b": weights((9,))}


@pytest.fixture
def family(database):
    """Three versions of a model, each trained from the one before."""
    versions = [first_version()]
    for step in (1, 2):
        versions.append({name: trained(array, seed=step) for name, array in versions[-1].items()})
    for tensors in versions:
        database.transaction(lambda session, tensors=tensors: create_model(session, "m", {}, tensors).id)
    return versions


def depths(database, family):
    for number, tensors in enumerate(family, 1):
        check(database, f"m@{number}", tensors)
    with database.session() as session:
        return [depth for _, depth in session.execute(DEPTHS)]


def test_versions_lean_on_one_another(database, family):
    assert depths(database, family) == [0, 1, 2]


def test_a_model_stands_for_itself_and_leans_again(database, family):
    grown = repack_model(database.engine, "m@2", base=None)
    assert grown.after_nbytes > grown.before_nbytes
    assert depths(database, family) == [0, 0, 1]
    shrunk = repack_model(database.engine, "m@2")
    assert (shrunk.before_nbytes, shrunk.after_nbytes) == (grown.after_nbytes, grown.before_nbytes)
    assert depths(database, family) == [0, 1, 2]
    assert repack_model(database.engine, "m@2").changed == 0


@pytest.mark.parametrize(("root", "expected"), [("m@3", [1, 1, 0]), ("m@1", [0, 1, 1]), ("m@2", [1, 0, 1])])
def test_a_family_leans_on_whichever_root(database, family, root, expected):
    repack_family(database.engine, root)
    assert depths(database, family) == expected
    assert repack_family(database.engine, root).changed == 0


def test_a_parent_is_leaned_on_before_a_version(database, family):
    other = {name: trained(array, seed=8) for name, array in family[0].items()}
    database.transaction(lambda session: create_model(session, "z", {}, other, base=None).id)
    database.transaction(lambda session: add_lineage(session, "z", "m@1", "finetune").id)
    assert repack_model(database.engine, "z").changed > 0
    check(database, "z", other)


def test_dense_is_smaller_and_none_is_as_it_is(database, family):
    dense = repack_model(database.engine, "m@1", compression="dense")
    assert dense.after_nbytes < dense.before_nbytes
    plain = repack_model(database.engine, "m@1", compression="none")
    assert plain.after_nbytes == sum(array.nbytes for array in family[0].values())
    depths(database, family)


def test_other_shapes_stand_for_themselves(database):
    with database.session() as session:
        create_model(session, "a", {}, {"w": weights((300, 300))})
        create_model(session, "b", {}, {"w": weights((300, 301)), "v": np.zeros(3, np.float32)})
        session.commit()
    repack_model(database.engine, "b", base="a")
    check(database, "b", {"w": weights((300, 301)), "v": np.zeros(3, np.float32)})


def test_a_model_that_is_not_there(database):
    with pytest.raises(ModelNotFound):
        repack_model(database.engine, "m")

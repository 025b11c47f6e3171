import pytest
from sqlalchemy import text

from arc_halo.registry import create_model
from tests.fixtures.tensors import trained, weights

DEEPEST = text("""
SELECT max(d.depth) FROM arc_halo.model_weights AS w JOIN arc_halo.tensor_chunks AS c ON c.tensor_id = w.tensor_id
  JOIN arc_halo.tensor_data AS d ON d.tenant_id = c.tenant_id AND d.digest = c.digest WHERE w.model_id = :model
""")


@pytest.fixture
def base(session):
    return create_model(session, "base", {}, {"t": weights((300, 300))})


def deepest(session, name, compression, **options):
    array = trained(weights((300, 300)))
    return session.scalar(
        DEEPEST, {"model": create_model(session, name, {}, {"t": array}, compression=compression, **options).id}
    )


@pytest.mark.parametrize("compression", ["fast", "balanced", "dense"])
def test_the_version_before_is_leaned_on(session, base, compression):
    assert deepest(session, base.name, compression) == 1


@pytest.mark.parametrize(("compression", "depth"), [("fast", 0), ("balanced", 1)])
@pytest.mark.usefixtures("base")
def test_a_relative_of_another_name_is_searched_for_where_there_is_time(session, compression, depth):
    assert deepest(session, "other", compression) == depth


@pytest.mark.parametrize("compression", ["fast", "balanced"])
def test_a_model_that_is_named_is_leaned_on(session, base, compression):
    assert deepest(session, "named", compression, base=base.id) == 1


@pytest.mark.parametrize("compression", ["fast", "balanced"])
def test_nothing_is_leaned_on_if_that_is_said(session, base, compression):
    assert deepest(session, base.name, compression, base=None) == 0

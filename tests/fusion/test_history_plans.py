"""Which answers a version gave is found by an index, however many operations there are."""

from sqlalchemy import insert, text

from arc_halo.fusion.operations.history import operations_with_model
from arc_halo.schema import FusionOperation, FusionOperationMember, ReactorModel
from tests.fusion.reactors import store_reactor
from tests.schema.rows import add_model

COUNT = 3000


def test_a_withdrawn_version_is_found_by_its_index(database):
    store_reactor(database, {"a": {}})
    with database.session() as session:
        versions = {each: add_model(session, "m", version=each).id for each in "34"}
        member = session.query(ReactorModel).one()
        rows = [
            {"reactor_id": member.reactor_id, "status": "completed", "strategy": "parallel", "input": {"prompt": "?"}}
            | {"output": {"text": "yes"}, "execution_seconds": 0.1}
            for _ in range(COUNT)
        ]
        ids = session.scalars(insert(FusionOperation).returning(FusionOperation.id), rows).all()
        calls = [
            {"operation_id": each, "position": 0, "member_id": member.id, "role": "primary", "weight": 1.0}
            | {"status": "answered", "answer": {"text": "yes"}, "model_id": versions["4" if at % 300 else "3"]}
            for at, each in enumerate(ids)
        ]
        session.execute(insert(FusionOperationMember), calls)
        session.commit()
        session.execute(text("ANALYZE arc_halo.fusion_operations, arc_halo.fusion_operation_members"))
        session.commit()
        count = "SELECT pg_stat_get_xact_numscans('arc_halo.{}'::regclass)"
        before = session.scalar(text(count.format("fusion_operation_members")))
        found = operations_with_model(session, "m@3")
        after = session.scalar(text(count.format("fusion_operation_members")))
        used = session.scalar(text(count.format("ix_fusion_operation_members_model_id")))
    assert len(found) == COUNT / 300
    assert after == before  # as a whole, the table was not looked through
    assert used > 0

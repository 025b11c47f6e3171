"""What reactors of earlier releases did is run again, looked up and remembered."""

from arc_halo.fusion.memory import recall
from arc_halo.fusion.operations.history import operations_of
from arc_halo.fusion.reactor import Reactor
from arc_halo.fusion.replay import replay
from arc_halo.fusion.state import read_state
from tests.golden.databases.fusion import ANSWERING, MEMORY, NAME, VECTOR
from tests.migrations.released import that_fuse


@that_fuse
def test_operations_come_out_as_they_did(opened):
    with opened.session() as session:
        stored = [(each.id, each.status) for each in reversed(operations_of(session, NAME))]
    assert [status for _, status in stored] == ["completed", "completed", "failed"]
    for operation_id, status in stored:
        recorded = replay(Reactor(opened, NAME, {}), operation_id, members="recorded")
        live = replay(Reactor(opened, NAME, ANSWERING), operation_id)
        for again in (recorded, live):
            assert (again.is_equal, again.outcome.status) == (True, status), again.differences


@that_fuse
def test_what_is_in_mind_is_found_again(opened):
    with opened.session() as session:
        state = read_state(session, NAME)
        assert (state.context, [goal.name for goal in state.goals]) == ({"topic": "rows"}, ["answer"])
        assert [each.content for each in recall(session, NAME, VECTOR)] == [MEMORY]

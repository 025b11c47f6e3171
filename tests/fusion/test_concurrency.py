"""Many operations at once, by threads and by processes, while others change the reactor."""

import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import selectinload

from arc_halo.fusion.creating import link_members
from arc_halo.fusion.reactor import Reactor
from arc_halo.fusion.state import append_state
from arc_halo.schema import FusionOperation, FusionOperationMember, Model, ModelInteraction, ReactorModel
from tests.fixtures import fusing_process
from tests.fusion.reactors import store_reactor
from tests.schema.rows import add_model

ROOT = Path(__file__).parents[2]
AT_ONCE = 16
STRATEGIES = pytest.mark.parametrize("strategy", ["parallel", "hierarchical"])


@pytest.fixture
def changing(database, strategy):
    """In each of its transactions all that a plan is made of changes together, and says how often it has."""
    store_reactor(database, {name: {} for name in fusing_process.MEMBERS}, strategy=strategy)

    def prepare(session):
        slow = session.scalars(select(ReactorModel).where(ReactorModel.name == "slow")).one()
        slow.model = add_model(session)
        append_state(session, "reactor", parent=None)

    database.transaction(prepare)
    changes = 0

    def change(session):
        number = changes + 1
        session.execute(update(ReactorModel).values(weight=1 + number))
        append_state(session, "reactor", parent=number - 1, context={"number": number})
        session.execute(update(Model).values(status="archived" if number % 2 else "trained"))
        if number % 2:
            link_members(session, "reactor", "breaks", "first", "augments")
        else:
            session.delete(session.scalars(select(ModelInteraction)).one())
            session.flush()

    @contextmanager
    def go_on():
        over = threading.Event()

        def work():
            nonlocal changes
            while not over.wait(0.002):
                database.transaction(change)
                changes += 1

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(work)
            try:
                yield
            finally:
                over.set()
                future.result()
        assert changes > 5

    return go_on


def check(database, ids, *, strategy):
    """None is lost, and each was run by the reactor as it was at one moment."""
    with database.session() as session:
        calls = selectinload(FusionOperation.members).joinedload(FusionOperationMember.member)
        rows = session.scalars(select(FusionOperation).options(calls)).all()
    assert {row.id for row in rows} == set(ids)
    assert len(ids) == len(set(ids))
    moments = set()
    for row in rows:
        number = row.state_version
        moments.add(number)
        assert row.status == "completed"
        assert row.graph_version == number
        assert {call.weight for call in row.members} == {1 + number}
        assert [call.position for call in row.members] == list(range(len(row.members)))
        assert {call.member.name for call in row.members} == {"breaks", "first"} | (
            {"slow"} if number % 2 == 0 else set()
        )
        asked = [call.prompt["prompt"] for call in row.members if call.member.name == "first"]
        (asked,) = asked
        assert asked.startswith("breaks:") == (strategy == "hierarchical" and number % 2 == 1 and int(row.seed) % 3 > 0)
    assert len(moments) > 3


@STRATEGIES
def test_threads_beside_changes(database, changing, strategy):
    reactor = Reactor(database, "reactor", fusing_process.MEMBERS)

    def work(number):
        return [reactor.run(fusing_process.question(number), seed=number).operation_id for _ in range(8)]

    with changing(), ThreadPoolExecutor(AT_ONCE) as pool:
        ids = [each for found in pool.map(work, range(AT_ONCE)) for each in found]
    check(database, ids, strategy=strategy)


@STRATEGIES
def test_processes_beside_changes(database, migrated_url, changing, strategy):
    url = migrated_url.render_as_string(hide_password=False)
    with changing():
        command = [sys.executable, fusing_process.__file__, url, "--threads", "4", "--count", "8", "--seed"]
        processes = [
            subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, text=True, cwd=ROOT) for seed in range(4)
        ]
        said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    check(database, [uuid.UUID(line) for each in said for line in each.split()], strategy=strategy)

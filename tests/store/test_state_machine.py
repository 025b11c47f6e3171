"""Any order of puts, deltas, reads, rollbacks, deletions, collection and moves between tiers, against a dict."""

from __future__ import annotations

import datetime as dt

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from arc_halo.database import connect
from arc_halo.errors import ModelNotFound
from arc_halo.registry import (
    create_model,
    delete_model,
    find_model,
    iter_tensors,
    read_tensor,
    repack_family,
    repack_model,
)
from arc_halo.store import prune
from arc_halo.store import put as store_put
from arc_halo.store.blobs import open_store
from arc_halo.store.migrate import migrate_payloads
from arc_halo.store.progress import Meter
from arc_halo.store.sweep import sweep
from arc_halo.store.verify import verify_database
from tests.fixtures.long import how_many
from tests.fixtures.tensors import weights

AT_ONCE = dt.timedelta(0)
POLICIES = st.sampled_from(["none", "fast", "balanced", "dense"])
DTYPES = st.sampled_from([np.float32, ml_dtypes.bfloat16, np.float16, np.int64])
QUIET = Meter(None, "migrate", 0)
SMALL_NBYTES = store_put.SMALL_NBYTES
orders = how_many("--orders", short=20)


class StoreMachine(RuleBasedStateMachine):
    """``self.expected`` is the model: names of versions, and the arrays they must have."""

    versions = Bundle("versions")

    @initialize()
    def begin(self):
        StoreMachine.runs += 1
        self.expected = {}
        self.count = 0

    def _name(self):
        self.count += 1
        return f"run{StoreMachine.runs}-{self.count}"

    def _create(self, arrays, policy, base):
        name = self._name()
        self.database.transaction(
            lambda session: create_model(session, name, {}, arrays, compression=policy, base=base).id
        )
        self.expected[name] = arrays
        return name

    @rule(is_uploaded=st.booleans())
    def choose_the_way(self, is_uploaded):
        """From now on all is part of the caller's transaction, or uploaded by connections of its own."""
        store_put.SMALL_NBYTES = -1 if is_uploaded else SMALL_NBYTES

    @rule(target=versions, seed=st.integers(0, 3), rows=st.integers(0, 700), dtype=DTYPES, policy=POLICIES)
    def put(self, seed, rows, dtype, policy):
        values = weights((rows, 400), seed) * (1000 if dtype is np.int64 else 1)
        return self._create({"w": values.astype(dtype), "b": np.float32([seed])}, policy, "auto")

    @rule(target=versions, version=versions, policy=POLICIES, seed=st.integers(0, 3), grown=st.integers(-100, 300))
    def train(self, version, policy, seed, grown):
        before = self.expected.get(version)
        if before is None:
            return version
        array = before["w"]
        change = np.random.default_rng(seed).standard_normal(array.shape) * 1e-4
        trained = (array.astype(np.float64) * (1 + change)).astype(array.dtype)
        trained = trained[:grown] if grown < 0 else np.concatenate([trained, np.zeros((grown, 400), array.dtype)])
        return self._create({"w": trained, "b": before["b"]}, policy, version)

    @rule(target=versions, version=versions, policy=POLICIES)
    def cast(self, version, policy):
        before = self.expected.get(version)
        if before is None or before["w"].dtype != np.float32:
            return version
        return self._create({"w": before["w"].astype(ml_dtypes.bfloat16), "b": before["b"]}, policy, version)

    @rule(seed=st.integers(0, 5), rows=st.integers(0, 700), policy=POLICIES)
    def roll_back(self, seed, rows, policy):
        """What another session put and took back is nowhere; content that it shared with others stays theirs."""
        name = self._name()
        with self.database.session() as session:
            create_model(session, name, {}, {"w": weights((rows, 400), seed)}, compression=policy)
            session.rollback()
            with pytest.raises(ModelNotFound):
                find_model(session, name)

    @rule(target=versions, seed=st.integers(0, 5), policy=POLICIES, is_same=st.booleans())
    def roll_a_savepoint_back(self, seed, policy, is_same):
        """What comes after the savepoint is whole, though some of its content was put and taken back within it."""
        dropped, name = self._name(), self._name()
        arrays = {"w": weights((500, 400), seed), "b": np.float32([seed])}
        with self.database.session() as session:
            with session.begin_nested() as savepoint:
                other = arrays if is_same else {"w": weights((300, 400), seed + 1)}
                create_model(session, dropped, {}, other, compression=policy)
                savepoint.rollback()
            create_model(session, name, {}, arrays, compression=policy)
            session.commit()
            with pytest.raises(ModelNotFound):
                find_model(session, dropped)
        self.expected[name] = arrays
        return name

    @rule()
    def verify(self):
        assert verify_database(self.database, resume=False).faults == []

    @rule(version=versions)
    def get(self, version):
        if version not in self.expected:
            return
        with self.database.session() as session:
            stored = dict(iter_tensors(session, version))
        assert all(stored[name].tobytes() == array.tobytes() for name, array in self.expected[version].items())

    @rule(version=versions, start=st.integers(-800, 800), stop=st.integers(-800, 800), step=st.sampled_from([1, 7, -3]))
    def slice_rows(self, version, start, stop, step):
        if version not in self.expected:
            return
        rows = slice(start, stop, step)
        with self.database.session() as session:
            stored = read_tensor(session, version, "w", rows)
        assert stored.tobytes() == self.expected[version]["w"][rows].tobytes()

    @rule(version=consumes(versions))
    def delete(self, version):
        if self.expected.pop(version, None) is not None:
            self.database.transaction(lambda session: delete_model(session, version))

    @rule()
    def collect(self):
        prune(self.database.engine, blobs=self.blobs, grace=AT_ONCE)
        sweep(self.database.engine, self.blobs, grace=AT_ONCE)

    @rule(to=st.sampled_from(["blobs", "database"]))
    def move(self, to):
        migrate_payloads(self.database.engine, self.blobs, to, QUIET)

    @rule(version=versions, policy=POLICIES, alone=st.booleans())
    def repack(self, version, policy, alone):
        if version in self.expected:
            base = None if alone else "auto"
            repack_model(self.database.engine, version, compression=policy, base=base, blobs=self.blobs)

    @rule(root=versions, policy=POLICIES)
    def reroot(self, root, policy):
        if root in self.expected:
            repack_family(self.database.engine, root, compression=policy, blobs=self.blobs)

    @invariant()
    def everything_is_there(self):
        with self.database.session() as session:
            for version in getattr(self, "expected", {}):
                assert find_model(session, version).weights_digest is not None

    def teardown(self):
        assert verify_database(self.database).faults == []
        for version in list(self.expected):
            self.get(version)
            self.delete(version)
        self.collect()
        with self.database.session() as session:
            assert session.connection().exec_driver_sql("SELECT count(*) FROM arc_halo.tensor_data").scalar() == 0
        assert not list(self.blobs.blobs())


def run(url, blob_url, **options):
    with connect(url, blob_url=blob_url) as database, pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_put, "SMALL_NBYTES", SMALL_NBYTES)  # and put back
        StoreMachine.database, StoreMachine.blobs, StoreMachine.runs = database, open_store(blob_url), 0

        checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
        run_state_machine_as_test(
            StoreMachine, settings=settings(deadline=None, suppress_health_check=checks, **options)
        )


@pytest.mark.timeout(600)
def test_any_order_of_operations(migrated_url, file_url, orders):
    run(migrated_url, file_url, max_examples=orders, stateful_step_count=20)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_orders_of_operations(migrated_url, file_url, orders):
    run(migrated_url, file_url, max_examples=orders, stateful_step_count=30)

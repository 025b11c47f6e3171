"""Any order of storing, looking up, expiring, pinning, evicting, retiring and clearing, against a list of rows."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import delete, func, select, update

from arc_halo.database import connect
from arc_halo.inference.kv import KVCache
from arc_halo.inference.kv.keeping import clear_caches, pin_prefix, set_quota
from arc_halo.inference.sweeping import sweep_caches
from arc_halo.schema import CacheAudit, KVCacheBlock, Model
from tests.fixtures.long import how_many
from tests.inference.kv import LAYOUT, make_layers, make_namespace, same
from tests.schema.rows import add_model, digest

FOR_EVER = float("inf")
WEIGHTS = digest("of the machine's version")
# Of two letters, so that nearly all rows share a beginning and branch from it.
ROWS = st.lists(st.integers(0, 1), max_size=9).map(tuple)
# Odd hours to live and even ones that pass: nothing ends within the seconds that a test takes.
HOURS_TO_LIVE = st.sampled_from([None, None, 1, 3])
HOURS = st.sampled_from([2, 4])
orders = how_many("--orders", short=60)


def common(first, second):
    """How many tokens two rows share from their start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((count for count, (one, other) in pairs if one != other), min(len(first), len(second)))


@dataclass
class Kept:
    """A row that was stored or pinned."""

    row: tuple[int, ...]
    deadline: float
    is_owed: bool = True
    """Until its deadline; false once others made room for something."""
    is_pinned: bool = False
    was_pinned: bool = False


class KVMachine(RuleBasedStateMachine):
    """``self.kept`` is the model, ``self.hours`` what has passed by the database's clock."""

    rows = Bundle("rows")
    known = st.builds(lambda row, count, tail: row[:count] + tail, rows, st.integers(0, 9), ROWS)

    @initialize(target=rows, block=st.integers(1, 4))
    def begin(self, block):
        self.block, self.hours, self.is_retired, self.has_quota, self.kept = block, 0, False, False, []
        with self.database.session() as session, session.begin():
            clear_caches(session)
            set_quota(session, "kv", None)
            session.execute(delete(Model))
            model = add_model(session, weights_digest=WEIGHTS)
        self.namespace = make_namespace(
            weights_digest=WEIGHTS, is_registered=True, model_id=model.id, block_token_count=block
        )
        self.cache = KVCache(self.database, self.namespace, LAYOUT)
        return ()

    def _least(self, row):
        """How much of a row must be found."""
        owed = (k.row for k in self.kept if k.is_pinned or (k.is_owed and k.deadline > self.hours))
        return 0 if self.is_retired else max((common(each, row) for each in owed), default=0)

    def _most(self, row):
        """How much of a row may be found: what was stored, in blocks some of whose tokens are still to be kept."""
        alive = [k.row for k in self.kept if k.was_pinned or k.deadline > self.hours]
        blocks = max((-(-common(each, row) // self.block) for each in alive), default=0)
        stored = max((common(each.row, row) for each in self.kept), default=0)
        return 0 if self.is_retired else min(blocks * self.block, stored)

    def _make_room(self):
        for each in self.kept:
            each.is_owed = False

    @rule(
        target=rows,
        row=ROWS | known,
        hours=HOURS_TO_LIVE,
        is_pinned=st.sampled_from([False, False, False, True]),
        codec=st.sampled_from(["none", "lossless"]),
        is_logged=st.booleans(),
        skips=st.booleans(),
    )
    def store(self, row, hours, *, is_pinned, codec, is_logged, skips):
        self.cache.codec, self.cache.logged, self.cache.ttl = codec, is_logged, hours and hours * 3600
        skip = self.cache.lookup(row).token_count if skips else 0
        stored = self.cache.store(row, make_layers(row), pinned=is_pinned, skip=skip)
        assert not stored.suspects
        assert stored.token_count == len(row) or (self.has_quota and stored.token_count < len(row))
        if stored.evicted_count:
            assert self.has_quota
            self._make_room()
        deadline = FOR_EVER if hours is None else self.hours + hours
        self.kept.append(Kept(row[: stored.token_count], deadline, is_pinned=is_pinned, was_pinned=is_pinned))
        return row

    @rule(row=ROWS | known)
    def look_up(self, row):
        layers, hit = self.cache.restore(row)
        assert self._least(row) <= hit <= self._most(row)
        assert same(layers, make_layers(row[:hit]))

    @rule(row=ROWS | known)
    def pin(self, row):
        hit = self.database.transaction(lambda session: pin_prefix(session, self.namespace, row))
        assert self._least(row) <= hit <= self._most(row)
        self.kept.append(Kept(row[:hit], -FOR_EVER, is_owed=False, is_pinned=True, was_pinned=True))

    @rule(row=ROWS | known)
    def unpin(self, row):
        """What ends in one of the row's blocks is no longer pinned for sure; what goes on behind or beside them is."""
        hit = self.database.transaction(lambda session: pin_prefix(session, self.namespace, row, pinned=False))
        for each in self.kept:
            last = (len(each.row) - 1) // self.block * self.block
            if common(each.row, row[:hit]) > last:
                each.is_pinned = False

    @rule(hours=HOURS)
    def let_time_pass(self, hours):
        earlier = KVCacheBlock.expires_at - dt.timedelta(hours=hours)
        self.database.transaction(lambda session: session.execute(update(KVCacheBlock).values(expires_at=earlier)))
        self.hours += hours

    @rule(tokens=st.none() | st.integers(0, 40))
    def limit(self, tokens):
        nbytes = None if tokens is None else tokens * LAYOUT.token_nbytes
        self.database.transaction(lambda session: set_quota(session, "kv", nbytes))
        self.has_quota = tokens is not None

    @rule(batch=st.sampled_from([1, 1000]))
    def sweep(self, batch):
        if sweep_caches(self.database, batch=batch).evicted_count:
            assert self.has_quota
            self._make_room()
        if self.is_retired:
            self.kept = []
        dead = (KVCacheBlock.expires_at <= func.now()) & ~KVCacheBlock.is_pinned
        with self.database.session() as session:
            left = session.scalar(select(func.count()).select_from(KVCacheBlock).where(dead | self.is_retired))
        assert left == 0

    @rule(is_retired=st.booleans())
    def retire(self, is_retired):
        """What nobody swept comes back with the version."""
        status = "archived" if is_retired else "deployed"
        self.database.transaction(lambda session: session.execute(update(Model).values(status=status)))
        self.is_retired = is_retired

    @rule(is_sure=st.sampled_from([True, False, False]))
    def clear(self, is_sure):
        if is_sure:
            self.database.transaction(clear_caches)
            self.kept = []

    def teardown(self):
        for each in self.kept:
            self.look_up((*each.row, 2))
        self.cache.close()
        with self.database.session() as session:
            assert session.scalar(select(func.count()).select_from(CacheAudit)) == 0


def run(url, **options):
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    with connect(url) as KVMachine.database:
        run_state_machine_as_test(KVMachine, settings=settings(deadline=None, suppress_health_check=checks, **options))


def test_any_order_of_operations(migrated_url, orders):
    run(migrated_url, max_examples=orders, stateful_step_count=25)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_orders_of_operations(migrated_url, orders):
    run(migrated_url, max_examples=orders, stateful_step_count=50)

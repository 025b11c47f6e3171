"""The contract of the places payloads are in, as a test suite: subclass `TierTests` and pytest checks yours."""
# ruff: noqa: D102  # a test's name is its documentation

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sqlalchemy import text

from arc_halo.database import connect
from arc_halo.errors import CorruptionError
from arc_halo.registry import check_model, create_model, delete_model, iter_tensors, read_tensor
from arc_halo.store import put as store_put
from arc_halo.store.blobs import open_store
from arc_halo.store.migrate import migrate_payloads
from arc_halo.store.progress import Meter
from arc_halo.store.prune import prune
from arc_halo.store.sweep import Swept, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import URL

    from arc_halo.database import Database
    from arc_halo.store.blobs import BlobStore

AT_ONCE = dt.timedelta(0)
QUIET = Meter(None, "migrate", 0)
_PLACES = text("SELECT count(payload), count(blob_location) FROM arc_halo.tensor_data WHERE stored_nbytes >= 4096")


def example_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Large and small tensors, one of them of several chunks."""
    rng = np.random.default_rng(seed)
    return {
        "matrix": (rng.standard_normal((1500, 500)) * 0.02).astype(np.float32),
        "noise": rng.integers(0, 256, 300_000, dtype=np.uint8),
        "bias": rng.standard_normal(7).astype(np.float32),
        "empty": np.empty((0, 3), np.float32),
    }


class TierTests:
    """What must hold wherever payloads are; a subclass of six lines checks one place.

    ::

        class TestMyStore(TierTests):
            @pytest.fixture
            def blob_url(self, tmp_path):
                return tmp_path.as_uri()

    ``blob_url`` is the URL of an empty store, or None: then payloads are in the database. The fixture ``migrated_url``
    is one of `arc_halo.testing.databases`.
    """

    @pytest.fixture
    def blob_url(self) -> str | None:
        raise NotImplementedError

    @pytest.fixture
    def tier(self, migrated_url: URL, blob_url: str | None) -> Iterator[Database]:
        with connect(migrated_url, blob_url=blob_url) as database:
            yield database

    @pytest.fixture
    def blobs(self, blob_url: str | None) -> BlobStore | None:
        return None if blob_url is None else open_store(blob_url)

    @pytest.fixture(params=[-1, 1 << 25], ids=["uploaded", "in the caller's transaction"])
    def tensors(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
        monkeypatch.setattr(store_put, "SMALL_NBYTES", request.param)
        return example_tensors()

    def test_arrays_come_back(self, tier: Database, tensors: dict[str, np.ndarray]) -> None:
        create(tier, "m", tensors)
        check(tier, "m", tensors)

    def test_payloads_are_where_they_belong(self, tier: Database, tensors: dict[str, np.ndarray]) -> None:
        create(tier, "m", tensors)
        in_database, in_store = places(tier)
        assert (in_store > 0, in_database > 0) == (tier.blob_url is not None, tier.blob_url is None)

    def test_rows_come_without_the_rest(self, tier: Database, tensors: dict[str, np.ndarray]) -> None:
        create(tier, "m", tensors)
        with tier.session() as session:
            rows = read_tensor(session, "m", "matrix", slice(700, 710))
        assert rows.tobytes() == tensors["matrix"][700:710].tobytes()

    def test_equal_content_is_stored_once(self, tier: Database, blobs: BlobStore | None) -> None:
        create(tier, "m", example_tensors())
        before = len(list(blobs.blobs())) if blobs else 0
        create(tier, "other", example_tensors())
        assert (len(list(blobs.blobs())) if blobs else 0) == before

    def test_deltas_lean_across_models(self, tier: Database) -> None:
        before = example_tensors()
        after = before | {"matrix": before["matrix"] * np.float32(1.0001)}
        create(tier, "m", before)
        create(tier, "m", after)
        check(tier, "m@2", after)
        with tier.session() as session:
            leaning = text("SELECT count(*) FROM arc_halo.tensor_data WHERE base_digest IS NOT NULL")
            assert session.scalar(leaning)

    def test_nothing_is_left_of_what_was_deleted(self, tier: Database, blobs: BlobStore | None) -> None:
        create(tier, "m", example_tensors())
        tier.transaction(lambda session: delete_model(session, "m"))
        prune(tier.engine, blobs=blobs, grace=AT_ONCE)
        assert places(tier) == (0, 0)
        if blobs is not None:
            assert sweep(tier.engine, blobs, grace=AT_ONCE).requested > 0
            assert not list(blobs.blobs())
            assert sweep(tier.engine, blobs, grace=AT_ONCE) == Swept()

    def test_what_is_in_use_is_not_swept(self, tier: Database, blobs: BlobStore | None) -> None:
        create(tier, "m", example_tensors())
        if blobs is not None:
            assert sweep(tier.engine, blobs, grace=AT_ONCE) == Swept()
        check(tier, "m", example_tensors())

    def test_an_abandoned_save_leaves_orphans_at_most(
        self, tier: Database, blobs: BlobStore | None, tensors: dict[str, np.ndarray]
    ) -> None:
        with tier.session() as session:
            create_model(session, "m", {}, tensors)
            if blobs is not None:  # its transaction is open: nothing of it is an orphan yet
                assert sweep(tier.engine, blobs, grace=AT_ONCE) == Swept()
            session.rollback()
            session.execute(text("DELETE FROM arc_halo.upload_leases"))
            session.commit()
        prune(tier.engine, blobs=blobs, grace=AT_ONCE)
        if blobs is not None:
            sweep(tier.engine, blobs, grace=AT_ONCE)
            assert not list(blobs.blobs())
        create(tier, "m", tensors)
        check(tier, "m", tensors)

    def test_a_changed_payload_is_found(self, tier: Database, blobs: BlobStore | None) -> None:
        create(tier, "m", example_tensors())
        with tier.session() as session:
            session.execute(text("UPDATE arc_halo.tensor_data SET payload_checksum = payload_checksum + 1"))
            session.commit()
            assert {fault.tensor for fault in check_model(session, "m")} == {"matrix", "noise", "bias"}
            with pytest.raises(CorruptionError):
                read_tensor(session, "m", "noise")
        assert blobs is None or tier.blob_url is not None

    def test_payloads_move_out_and_back(self, tier: Database, blobs: BlobStore | None) -> None:
        if blobs is None:
            return  # there is one place only
        create(tier, "m", example_tensors())
        for to, expected in (("database", 0), ("blobs", None), ("database", 0)):
            moved = migrate_payloads(tier.engine, blobs, to, QUIET)  # type: ignore[arg-type]  # a literal, in a tuple
            assert moved.payloads > 0
            assert places(tier)[1] == (moved.payloads if expected is None else expected)
            check(tier, "m", example_tensors())
            assert migrate_payloads(tier.engine, blobs, to, QUIET).payloads == 0  # type: ignore[arg-type]
        sweep(tier.engine, blobs, grace=AT_ONCE)
        assert not list(blobs.blobs())


def create(database: Database, name: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Store a new version of a model."""
    database.transaction(lambda session: create_model(session, name, {}, tensors).id)


def check(database: Database, name: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Assert that a model has these tensors to the bit, and that all that is stored of it is sound."""
    with database.session() as session:
        stored = dict(iter_tensors(session, name))
        assert stored.keys() == tensors.keys()
        assert all(stored[each].tobytes() == array.tobytes() for each, array in tensors.items())
        assert not list(check_model(session, name))


def places(database: Database) -> tuple[int, int]:
    """Payloads of some size in the database, and in the blob store."""
    with database.session() as session:
        row: Any = session.execute(_PLACES).one()
    return row[0], row[1]

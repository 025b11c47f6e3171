"""An upload's short transactions do not wait for the disk; the caller's commit makes them last."""

from __future__ import annotations

import numpy as np
import pytest

from arc_halo.database import connect
from arc_halo.database.embedded import EmbeddedServer
from arc_halo.registry import check_model, create_model
from arc_halo.store import put as store_put
from tests.fixtures.embedded import kill


@pytest.fixture
def durable_server(home):
    """With the settings users get: the other tests' servers wait for no commit at all."""
    server = EmbeddedServer(home)
    yield server
    server.close()


def test_what_was_committed_is_there_after_the_server_is_killed(durable_server, monkeypatch):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", 0)
    array = np.random.default_rng(0).standard_normal((8192, 1024)).astype(np.float32)
    with connect(durable_server.acquire(), migrate=True) as database, database.session() as session:
        create_model(session, "kept", {}, {"w": array})
        session.commit()
        kill(durable_server)
    with connect(durable_server.acquire()) as database, database.session() as session:
        assert list(check_model(session, "kept")) == []

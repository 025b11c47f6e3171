"""How the statement that fetches chunks finds what they lean on."""

from __future__ import annotations

from hashlib import sha256

import pytest
from sqlalchemy import text

from arc_halo.database.translate import driver_errors
from arc_halo.store.connections import driver_connection
from arc_halo.store.payloads import _CHAINS, MAX_DEPTH, fetch

FILL = text("""
INSERT INTO arc_halo.tensor_data (tenant_id, digest, raw_nbytes, stored_nbytes, codec, dtype, payload_checksum, payload,
                                  base_digest, base_depth)
SELECT 0, sha256(CAST(CAST(number AS text) AS bytea)), 1000, 2500, 'raw', 'F32', 0,
       CAST(repeat('x', 2500) AS bytea),
       CASE WHEN number % 4 > 0 THEN sha256(CAST(CAST(number - 1 AS text) AS bytea)) END,
       CASE WHEN number % 4 > 0 THEN number % 4 - 1 END
  FROM generate_series(0, :last) AS number
""")


@pytest.mark.parametrize("rows", [500, 2_000, 10_000])
@pytest.mark.parametrize("asked", [1, 4, 60, 250])
def test_a_table_is_not_read_whole_for_some_of_its_chunks(session, rows, asked):
    session.execute(FILL, {"last": rows - 1})
    session.execute(text("ANALYZE arc_halo.tensor_data"))
    digests = [row[0] for row in session.execute(text("SELECT digest FROM arc_halo.tensor_data ORDER BY 1 LIMIT 250"))]
    parameters = {"tenant": 0, "digests": digests[:asked], "max_depth": MAX_DEPTH, "max_nbytes": 20_000}
    connection = driver_connection(session.connection())
    with driver_errors():
        plan = [row[0] for row in connection.execute(f"EXPLAIN {_CHAINS}", parameters)]
    assert not [line for line in plan if "Seq Scan on tensor_data" in line]


@pytest.mark.parametrize(
    ("max_nbytes", "found", "brought"),
    [(0, 1, 4), (19_999, 1, 4), (20_000, 3, 8), (30_000, 4, 12), (32_500, 5, 13)],
)
def test_payloads_of_the_first_chunks_are_found_as_far_as_they_fit(session, max_nbytes, found, brought):
    """Each chunk is 2,500 bytes; 3, 7 and 11 lean on three others each, 12 on none, and 99,999 is not there."""
    session.execute(FILL, {"last": 15})
    digests = [sha256(str(number).encode()).digest() for number in (3, 99_999, 7, 11, 12)]
    with driver_errors():
        payloads = fetch(driver_connection(session.connection()), 0, digests, None, max_nbytes)
    assert payloads.asked == set(digests[:found])
    assert len(payloads.chunks) == brought


def test_chunks_that_are_not_there_are_told_of(session):
    with driver_errors():
        payloads = fetch(driver_connection(session.connection()), 0, [bytes(32)], None, 0)
    assert payloads.asked == {bytes(32)}
    assert not payloads.chunks

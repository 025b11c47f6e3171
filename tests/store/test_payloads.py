"""How the statement that fetches chunks finds what they lean on."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from arc_halo.database.translate import driver_errors
from arc_halo.store.connections import driver_connection
from arc_halo.store.payloads import _CHAINS, MAX_DEPTH

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
    parameters = {"tenant": 0, "digests": digests[:asked], "max_depth": MAX_DEPTH}
    connection = driver_connection(session.connection())
    with driver_errors():
        plan = [row[0] for row in connection.execute(f"EXPLAIN {_CHAINS}", parameters)]
    assert not [line for line in plan if "Seq Scan on tensor_data" in line]

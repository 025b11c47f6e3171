"""Arrays in PostgreSQL's binary format."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import text

from arc_halo.store.arrays import decode_array, encode_array


@pytest.mark.parametrize(
    ("values", "kind", "oid", "dtype"),
    [
        (np.array([1, -2, 2**31 - 1], np.int32), "integer", 23, ">i4"),
        (np.array([0.1, -0.0, np.inf, 1e-45], np.float32), "real", 700, ">f4"),
        (np.array([], np.float32), "real", 700, ">f4"),
    ],
)
def test_an_array_is_what_the_server_sends(session, values, kind, oid, dtype):
    literal = "{" + ",".join(map(repr, values.tolist())) + "}"
    sent = session.scalar(text(f"SELECT array_send(CAST(:literal AS {kind}[]))"), {"literal": literal})
    assert encode_array(values, oid, dtype) == sent
    assert decode_array(sent, dtype).tobytes() == values.tobytes()

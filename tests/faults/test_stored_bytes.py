from __future__ import annotations

import tracemalloc

import blosc2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pcodec import ChunkConfig, standalone
from sqlalchemy import text

from arc_halo.codecs.digest import payload_checksum
from arc_halo.codecs.zstd import BloscZstd
from arc_halo.dtypes import by_name
from arc_halo.errors import CorruptChunk, CorruptionError
from arc_halo.registry import check_model, create_model, export_model, read_tensor
from tests.fixtures.tensors import put, random_array, same, weights

TENSORS = {
    "planes": weights((4096, 160), 1),  # three chunks, two of them of equal length
    "numbers": np.arange(600_000, dtype=np.int32),
    "noise": random_array(np.uint8, (1100, 2000)),
    "tiny": weights((3,)),
}
CODECS = {"planes": "blosc2-zstd", "numbers": "pco", "noise": "raw", "tiny": "raw"}
OF_TENSOR = "(SELECT tensor_id FROM arc_halo.model_weights WHERE name = 'planes')"
FIRST = f"(SELECT digest FROM arc_halo.tensor_chunks WHERE chunk_index = 0 AND tensor_id = {OF_TENSOR})"
SECOND = f"(SELECT digest FROM arc_halo.tensor_chunks WHERE chunk_index = 1 AND tensor_id = {OF_TENSOR})"
OTHER = "decode(repeat('ab', 32), 'hex')"

# Each is a change to the tensor 'planes', most of them where its second chunk is.
DATA = f"UPDATE arc_halo.tensor_data SET {{}} WHERE digest = {SECOND}"
CHUNK = f"UPDATE arc_halo.tensor_chunks SET {{}} WHERE chunk_index = 1 AND tensor_id = {OF_TENSOR}"
TENSOR = f"UPDATE arc_halo.tensor_metadata SET {{}} WHERE id = {OF_TENSOR}"
SWAPPED = "codec = o.codec, stored_nbytes = o.stored_nbytes, payload_checksum = o.payload_checksum, payload = o.payload"
CHANGES_OF_A_CHUNK = {
    "digest": DATA.format(f"digest = {OTHER}"),
    "length": DATA.format("raw_nbytes = raw_nbytes - 4"),
    "checksum": DATA.format("payload_checksum = payload_checksum + 1"),
    "codec": DATA.format("codec = 'raw'"),
    "unknown codec": DATA.format("codec = 'lzma'"),
    "unknown dtype": DATA.format("dtype = 'F128'"),
    "narrower dtype": DATA.format("dtype = 'F16'"),
    "cut short": DATA.format("payload = substring(payload FOR 100), stored_nbytes = 100"),
    "empty": DATA.format("payload = '', stored_nbytes = 0"),
    "deleted": f"DELETE FROM arc_halo.tensor_data WHERE digest = {SECOND}",
    "swapped": f"UPDATE arc_halo.tensor_data AS d SET {SWAPPED} FROM arc_halo.tensor_data AS o"
    f" WHERE (d.digest = {FIRST} AND o.digest = {SECOND}) OR (d.digest = {SECOND} AND o.digest = {FIRST})",
}
CHANGES_OF_A_TENSOR = {
    "another chunk": CHUNK.format(f"digest = {FIRST}"),
    "chunks swapped": "UPDATE arc_halo.tensor_chunks SET digest = CASE chunk_index WHEN 0 THEN second ELSE first END"
    f" FROM (SELECT {FIRST} AS first, {SECOND} AS second) AS s WHERE chunk_index < 2 AND tensor_id = {OF_TENSOR}",
    "place": CHUNK.format("chunk_index = 7"),
    "length of a place": CHUNK.format("raw_nbytes = 4"),
    "place deleted": f"DELETE FROM arc_halo.tensor_chunks WHERE chunk_index = 2 AND tensor_id = {OF_TENSOR}",
    "all places deleted": f"DELETE FROM arc_halo.tensor_chunks WHERE tensor_id = {OF_TENSOR}",
    "place added": "INSERT INTO arc_halo.tensor_chunks (tenant_id, tensor_id, chunk_index, digest, first_row,"
    f" raw_offset, raw_nbytes) SELECT 0, {OF_TENSOR}, 3, {FIRST}, 0, 0, 4",
    "digest of the tensor": TENSOR.format(f"digest = {OTHER}"),
    "seal": TENSOR.format(f"seal = {OTHER}"),
    "dtype": TENSOR.format("dtype = 'I32'"),
    "unknown dtype": TENSOR.format("dtype = 'F128'"),
    "shape": TENSOR.format("shape = '{160,4096}'"),
    "shape of the same size": TENSOR.format("shape = '{8192,80}'"),
    "negative shape": TENSOR.format("shape = '{-4096,-160}'"),
    "shape with NULL": TENSOR.format("shape = '{NULL,160}'"),
    "shape of two axes of axes": TENSOR.format("shape = '{{4096},{160}}'"),
    "size": TENSOR.format("nbytes = 4"),
    "chunk size": TENSOR.format("chunk_nbytes = chunk_nbytes * 2"),
}


@pytest.fixture
def model(session):
    put(session, TENSORS["numbers"], compression="dense")
    model = create_model(session, "victim", {}, TENSORS, compression="fast")
    session.execute(text("SET LOCAL session_replication_role = replica"))  # no foreign keys, no triggers
    return model


def codecs_of(session, name):
    statement = """SELECT d.codec FROM arc_halo.tensor_data d JOIN arc_halo.tensor_chunks c USING (tenant_id, digest)
                     JOIN arc_halo.model_weights w USING (tensor_id) WHERE w.name = :name"""
    return set(session.scalars(text(statement), {"name": name}))


def assert_refused(session, model, folder, *, tensor="planes", chunk=None):
    row = slice(None) if chunk is None else slice(chunk * 1638, chunk * 1638 + 10)
    for read in (lambda: read_tensor(session, model, tensor), lambda: export_model(session, model, folder)):
        with pytest.raises(CorruptionError, match=f"({tensor}'|victim@1).* restore (it|them) from a copy"):
            read()
    if tensor == "planes":
        with pytest.raises(CorruptionError):
            read_tensor(session, model, tensor, row)
    assert not list(folder.iterdir())
    faults = list(check_model(session, model))
    assert (tensor, chunk) in {(fault.tensor, fault.chunk_index) for fault in faults}
    assert all(fault.tensor in ("", tensor) for fault in faults)


def test_the_tensors_are_stored_by_the_codecs_that_are_attacked(session, model):
    assert {name: codecs_of(session, name) for name in TENSORS} == {name: {codec} for name, codec in CODECS.items()}
    assert list(check_model(session, model)) == []


@pytest.mark.parametrize("change", CHANGES_OF_A_CHUNK)
def test_a_changed_chunk_is_found(session, model, tmp_path, change):
    session.execute(text(CHANGES_OF_A_CHUNK[change]))
    assert_refused(session, model, tmp_path, chunk=1)


@pytest.mark.parametrize("change", CHANGES_OF_A_TENSOR)
def test_a_changed_manifest_is_found(session, model, tmp_path, change):
    session.execute(text(CHANGES_OF_A_TENSOR[change]))
    assert_refused(session, model, tmp_path)


@pytest.mark.parametrize("change", CHANGES_OF_A_CHUNK)
def test_other_tensors_and_other_rows_are_still_read(session, model, change):
    session.execute(text(CHANGES_OF_A_CHUNK[change]))
    assert same(read_tensor(session, model, "noise"), TENSORS["noise"])
    if change != "swapped":
        assert same(read_tensor(session, model, "planes", slice(1600)), TENSORS["planes"][:1600])


FLIP = """
UPDATE arc_halo.tensor_data AS d
   SET payload = set_bit(payload, at, 1 - get_bit(payload, at))
  FROM (SELECT c.digest, floor(octet_length(payload) * 8 * CAST(:place AS float8))::bigint AS at
          FROM arc_halo.tensor_data JOIN arc_halo.tensor_chunks c USING (tenant_id, digest)
          JOIN arc_halo.model_weights w USING (tensor_id)
         WHERE w.name = :tensor ORDER BY chunk_index LIMIT 1) AS chosen
 WHERE d.digest = chosen.digest
"""


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(TENSORS)), st.floats(0, 1, exclude_max=True) | st.floats(0, 1e-4))
def test_any_bit_of_any_payload_counts(session, model, tensor, place):
    with session.begin_nested() as savepoint:
        session.execute(text(FLIP), {"tensor": tensor, "place": place})
        with pytest.raises(CorruptionError, match=f"{tensor}', chunk 0 "):
            read_tensor(session, model, tensor)
        assert [(fault.tensor, fault.chunk_index) for fault in check_model(session, model)] == [(tensor, 0)]
        savepoint.rollback()


BOMBS = {
    "blosc2-zstd": lambda: bytes(blosc2.compress2(bytes(256 << 20), typesize=4)),
    "pco": lambda: standalone.simple_compress(np.zeros(64 << 20, np.uint32), ChunkConfig()),
    "raw": lambda: bytes(8 << 20),
}


@pytest.mark.parametrize("codec", BOMBS)
def test_a_bomb_with_a_sound_checksum_is_refused(session, model, tmp_path, codec):
    payload = BOMBS[codec]()
    statement = DATA.format("codec = :codec, payload = :payload, stored_nbytes = :nbytes, payload_checksum = :checksum")
    values = {"nbytes": len(payload), "checksum": payload_checksum(payload)}
    session.execute(text(statement), {"codec": codec, "payload": payload, **values})
    assert_refused(session, model, tmp_path, chunk=1)


def test_a_bomb_that_its_row_agrees_with_is_refused_before_it_takes_memory(session, model):
    payload = BloscZstd().encode(memoryview(bytes(256 << 20)), by_name("F32"))
    statement = "payload = :payload, stored_nbytes = :nbytes, payload_checksum = :checksum, raw_nbytes = 268435456"
    values = {"payload": payload, "nbytes": len(payload), "checksum": payload_checksum(payload)}
    session.execute(text(DATA.format(statement)), values)
    tracemalloc.start()
    with pytest.raises(CorruptChunk, match="holds 268435456 bytes"):
        read_tensor(session, model, "planes", 2000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


def test_a_bomb_that_changes_its_length_too_is_refused(session, model, tmp_path):
    session.execute(text(DATA.format("raw_nbytes = 2147483647")))
    session.execute(text(CHUNK.format("raw_nbytes = 2147483647")))
    session.execute(text(TENSOR.format("chunk_nbytes = 2147483647, nbytes = 2147483647")))
    assert_refused(session, model, tmp_path)


WEIGHTS = {
    "deleted": "DELETE FROM arc_halo.model_weights WHERE name = 'tiny'",
    "renamed": "UPDATE arc_halo.model_weights SET name = 'giant' WHERE name = 'tiny'",
    "another tensor": f"UPDATE arc_halo.model_weights SET tensor_id = {OF_TENSOR} WHERE name = 'tiny'",
}


@pytest.mark.parametrize("change", WEIGHTS)
def test_changed_weights_of_a_model_are_found(session, model, tmp_path, change):
    session.execute(text(WEIGHTS[change]))
    with pytest.raises(CorruptionError, match=r"victim@1.*weights_digest"):
        export_model(session, model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (fault,) = check_model(session, model)
    assert "weights_digest" in fault.message

from __future__ import annotations

import json
import os
import struct
from math import prod

import ml_dtypes
import numpy as np
import pytest
from sqlalchemy import text

from tests.fixtures.gguf import entry, header, padded
from tests.fixtures.gguf import tensor as gguf_tensor
from tests.fixtures.long import how_many
from tests.fixtures.processes import import_processes

# BF16: 512 x 1024 elements are a mebibyte.
FILES = {
    "small": [(512, 1024)] * 31,  # in the caller's transaction
    "many": [(4096, 1024)] * 24,
    "long": [(1, 96 * 512, 1024)],  # one row of 96 MiB
}
ALLOWED_MEBIBYTES = 64


def write_noise(path, shapes):
    offset, header = 0, {}
    for index, shape in enumerate(shapes):
        end = offset + 2 * prod(shape)
        header[f"t{index}"] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in range(offset >> 20):
            file.write(os.urandom(1 << 20))


def write_gguf_noise(path, shapes):
    """Blocks of Q4_K: shapes are in numbers, of which 256 take 144 bytes."""
    sizes = [prod(shape) // 256 * 144 for shape in shapes]
    offsets = [sum(sizes[:index]) for index in range(len(shapes))]
    infos = [
        gguf_tensor(f"blk.{index}.ffn_up.weight", shape[::-1], 12, offset)
        for index, (shape, offset) in enumerate(zip(shapes, offsets, strict=True))
    ]
    with path.open("wb") as file:
        file.write(padded(header([entry("general.architecture", "string", "llama")], infos)))
        for size in sizes:
            for start in range(0, size, 1 << 20):
                file.write(os.urandom(min(1 << 20, size - start)))


@pytest.fixture
def peaks(migrated_url, tmp_path):
    """Peak memory in MiB of a process when it has imported tensors of these shapes, and when it has exported them."""

    def measure(name, shapes, suffix=".safetensors"):
        path = tmp_path / f"{name}{suffix}"
        (write_gguf_noise if suffix == ".gguf" else write_noise)(path, shapes)
        with import_processes(migrated_url, (path, name, "--export", str(tmp_path / name))) as (process,):
            found = [float(each) for each in process.finish(timeout=3600).split()]
        assert (tmp_path / name / path.name).stat().st_size == path.stat().st_size
        return found

    return measure


def check(peaks, name, shapes):
    base = peaks("base", [(512, 1024)])
    found = peaks(name, shapes)
    more = [peak - least for peak, least in zip(found, base, strict=True)]
    assert max(more) <= ALLOWED_MEBIBYTES


@pytest.fixture(params=["database", "folder", "S3"])
def tier(request, monkeypatch):
    """Where the import process, which reads the environment, puts payloads."""
    if request.param != "database":
        url = request.getfixturevalue("file_url" if request.param == "folder" else "s3_url")
        monkeypatch.setenv("ARC_HALO_BLOB_URL", url)


@pytest.mark.parametrize("case", FILES)
def test_memory_does_not_grow_with_the_model_or_a_tensor(peaks, case):
    check(peaks, case, FILES[case])


@pytest.mark.parametrize("shapes", [[(4096, 4096)] * 16, [(1, 170 << 20)]], ids=["many", "long"])
def test_memory_does_not_grow_with_a_gguf_file(peaks, shapes):
    base, found = peaks("base", [(512, 1024)]), peaks("blocks", shapes, ".gguf")
    assert max(peak - least for peak, least in zip(found, base, strict=True)) <= ALLOWED_MEBIBYTES


@pytest.mark.usefixtures("tier")
def test_memory_does_not_grow_in_any_tier(peaks):
    check(peaks, "many", FILES["many"])


def write_trained(path, shapes, step):
    """Weights after so many steps, each of which moves every number a little."""
    offset, header, data = 0, {}, b""
    for index, shape in enumerate(shapes):
        rng = np.random.default_rng(index)
        array = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        for _ in range(step):
            array += rng.standard_normal(shape, np.float32) * np.float32(3e-4)
        data += array.astype(ml_dtypes.bfloat16).tobytes()
        header[f"t{index}"] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, len(data)]}
        offset = len(data)
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_a_chain_of_deltas(peaks, database, migrated_url, tmp_path):
    base = peaks("base", [(512, 1024)])
    for step in range(9):
        path = tmp_path / f"{step}.safetensors"
        write_trained(path, [(4096, 1024)] * 3, step)
        asked = (
            path,
            "family",
            "--compression",
            "dense",
            "--small-nbytes",
            "-1",
            "--export",
            str(tmp_path / str(step)),
        )
        with import_processes(migrated_url, asked) as (process,):
            found = [float(each) for each in process.finish(timeout=600).split()]
    with database.session() as session:
        assert session.scalar(text("SELECT max(depth) FROM arc_halo.tensor_data")) == 8
    more = [peak - least for peak, least in zip(found, base, strict=True)]
    assert max(more) <= ALLOWED_MEBIBYTES


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("tier")
def test_a_large_model_goes_through_every_tier(peaks, gibibytes):
    """Tensors of 32 MiB, and one of a quarter of it all in a single row."""
    rows = gibibytes * 8 * 3
    check(peaks, "large", [(16 * 1024, 1024)] * rows + [(1, gibibytes * 128 * 1024, 1024)])


gibibytes = how_many("--gibibytes", short=1)

from __future__ import annotations

import gc
import os

import numpy as np
import psutil
import pytest

from arc_halo.store.mapping import map_file


@pytest.fixture
def mapped(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)
    with path.open("rb") as file:
        array = map_file(file.fileno(), 256 * 64)
    path.unlink()
    return array


def test_a_map_outlives_its_file(mapped):
    assert mapped.tobytes() == bytes(range(256)) * 64


def test_views_outlive_the_map(mapped):
    view = mapped[256:512]
    del mapped
    gc.collect()
    assert view.tobytes() == bytes(range(256))


def test_a_map_cannot_be_made_writable(mapped):
    with pytest.raises(ValueError, match="WRITEABLE"):
        mapped.flags.writeable = True


def test_maps_keep_no_descriptors(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    before = psutil.Process().num_fds()
    with path.open("rb") as file:
        maps = [map_file(file.fileno(), 5) for _ in range(50)]
    assert psutil.Process().num_fds() == before
    assert np.all(np.concatenate(maps).view("S5") == b"bytes")


def test_what_cannot_be_mapped_is_an_error_of_the_system():
    reading, writing = os.pipe()
    try:
        with pytest.raises(OSError, match=r"No such device|supported"):
            map_file(reading, 5)
    finally:
        os.close(reading)
        os.close(writing)

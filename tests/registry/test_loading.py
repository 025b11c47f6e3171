from __future__ import annotations

import os
import time

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from safetensors.numpy import load_file

from arc_halo.codecs.digest import TensorHasher
from arc_halo.dtypes import of_array
from arc_halo.errors import TensorNotFound
from arc_halo.registry import create_model, delete_model, iter_tensors, load_model
from arc_halo.registry.loading import configured_cache
from arc_halo.store.cache import ReadCache
from arc_halo.testing.tiers import example_tensors
from tests.fixtures.tensors import arrays, fetched_chunks, same, weights


@pytest.fixture
def cache(tmp_path):
    return ReadCache(tmp_path / "cache", 1 << 30)


@pytest.fixture
def model(session):
    return create_model(session, "m", {}, example_tensors())


def files(cache):
    return sorted(cache.folder.glob("??/*.safetensors"))


def test_the_second_load_reads_no_chunk(session, model, cache):
    first = load_model(session, model, cache=cache)
    with fetched_chunks(session) as fetched:
        second = load_model(session, model, cache=cache)
    assert fetched == []
    for name, array in example_tensors().items():
        assert same(first[name], array)
        assert same(second[name], array)
        assert second[name].size == 0 or isinstance(second[name].base, np.memmap) or isinstance(second[name], np.memmap)


def test_a_file_of_the_cache_is_a_safetensors_file(session, model, cache):
    load_model(session, model, names=["matrix"], cache=cache)
    (path,) = files(cache)
    assert same(load_file(path)["tensor"], example_tensors()["matrix"])
    assert path.stat().st_mode & 0o777 == 0o600


def test_maps_cannot_be_written_to_and_memory_can(session, model, cache):
    with pytest.raises(ValueError, match="read-only"):
        load_model(session, model, cache=cache)["noise"][0] = 1
    load_model(session, model, cache=False)["noise"][0] = 1


def test_models_share_what_they_have_in_common(session, model, cache):
    load_model(session, model, cache=cache)
    before = len(files(cache))
    create_model(session, "other", {}, example_tensors() | {"new": weights((9, 9))})
    load_model(session, "other", cache=cache)
    assert len(files(cache)) == before + 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(b"\0" * path.stat().st_size),
        lambda path: path.write_bytes(b""),
    ],
    ids=["short", "long", "overwritten", "empty"],
)
def test_what_is_damaged_is_read_again(session, model, cache, damage):
    load_model(session, model, cache=cache)
    for path in files(cache):
        damage(path)
    loaded = load_model(session, model, cache=cache)
    assert all(same(loaded[name], array) for name, array in example_tensors().items())


def test_a_flipped_bit_is_found_if_asked_for(session, model, cache):
    load_model(session, model, names=["noise"], cache=cache)
    (path,) = files(cache)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert not same(load_model(session, model, names=["noise"], cache=cache)["noise"], example_tensors()["noise"])
    loaded = load_model(session, model, names=["noise"], cache=cache, verify=True)
    assert same(loaded["noise"], example_tensors()["noise"])


def test_a_deleted_model_does_not_come_from_the_cache(session, model, cache):
    load_model(session, model, cache=cache)
    delete_model(session, model)
    with pytest.raises(LookupError):
        load_model(session, "m", cache=cache)


def test_a_name_that_is_not_there(session, model, cache):
    with pytest.raises(TensorNotFound):
        load_model(session, model, names=["nothing"], cache=cache)


def test_a_disk_that_cannot_be_written_to_leaves_it_to_memory(session, model, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    loaded = load_model(session, model, cache=ReadCache(tmp_path / "file", 1 << 30))
    assert all(same(loaded[name], array) for name, array in example_tensors().items())
    assert "stay in memory" in caplog.text


def test_what_was_not_used_for_longest_goes(session, model, cache):
    load_model(session, model, cache=cache)
    oldest = cache.path(digest(example_tensors()["matrix"]))
    os.utime(oldest, (time.time() - 9000,) * 2)
    cache.max_nbytes = cache.use().nbytes - 1
    mapped = load_model(session, model, names=["noise"], cache=cache)["noise"]
    assert cache.evict() == 3_000_096 or not oldest.exists()
    assert not oldest.exists()
    assert same(mapped, example_tensors()["noise"])
    assert cache.clear().files == len(example_tensors()) - 1
    assert same(mapped, example_tensors()["noise"])
    assert cache.use().files == 0


def test_use_is_noted(session, model, cache):
    load_model(session, model, names=["noise"], cache=cache)
    (path,) = files(cache)
    os.utime(path, (time.time() - 9000,) * 2)
    load_model(session, model, names=["noise"], cache=cache)
    assert time.time() - path.stat().st_mtime < 100


def test_settings_say_where_and_how_large(monkeypatch, tmp_path):
    monkeypatch.setenv("ARC_HALO_CACHE_FOLDER", str(tmp_path))
    monkeypatch.setenv("ARC_HALO_CACHE_NBYTES", "123")
    assert (configured_cache().folder, configured_cache().max_nbytes) == (tmp_path, 123)
    monkeypatch.setenv("ARC_HALO_CACHE_NBYTES", "0")
    assert configured_cache() is None


def digest(array):
    hasher = TensorHasher(of_array(array), array.shape)
    hasher.update(array.tobytes())
    return hasher.digest()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(array=arrays(), cut=st.integers(0, 40))
def test_any_array_comes_back(cache, array, cut):
    stored = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<")))
    raw = stored.tobytes()
    dtype, name = of_array(stored), digest(stored)
    cache.put(name, dtype, stored.shape, [raw[:cut], raw[cut:]])
    assert same(cache.get(name, dtype, stored.shape, verify=True), stored)
    assert cache.get(bytes(32), dtype, stored.shape) is None


def test_it_agrees_with_iter_tensors(session, model, cache):
    loaded = load_model(session, model, cache=cache)
    assert all(same(loaded[name], array) for name, array in iter_tensors(session, model))

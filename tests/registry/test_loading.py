from __future__ import annotations

import resource
from contextlib import contextmanager

import numpy as np
import pytest

from arc_halo.errors import DatabaseUnavailable, TensorNotFound
from arc_halo.registry import create_model, delete_model, iter_tensors, load_model, loading
from arc_halo.registry.loading import configured_cache
from arc_halo.store.cache import ReadCache
from arc_halo.testing.tiers import example_tensors
from tests.fixtures.tensors import fetched_chunks, same, weights


@pytest.fixture
def cache(tmp_path):
    return ReadCache(tmp_path / "cache", 1 << 30)


@pytest.fixture
def model(session):
    return create_model(session, "m", {}, example_tensors())


def files(cache):
    return sorted(cache.folder.glob("??/*.safetensors"))


def is_example(loaded):
    return list(loaded) == list(example_tensors()) and all(
        same(loaded[name], array) for name, array in example_tensors().items()
    )


@contextmanager
def a_disk_with_room_for(nbytes):
    """No file of this process may be longer."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_the_second_load_reads_no_chunk(session, model, cache):
    assert is_example(load_model(session, model, cache=cache))
    before = [path.stat().st_mtime_ns for path in files(cache)]
    with fetched_chunks(session) as fetched:
        assert is_example(load_model(session, model, cache=cache))
    assert fetched == []
    assert [path.stat().st_mtime_ns for path in files(cache)] == before


def test_the_second_load_is_one_statement(session, model, cache, count_statements):
    load_model(session, model, cache=cache)
    with count_statements(session.get_bind()) as statements:
        load_model(session, model, cache=cache)
    assert len(statements) == 1


def test_it_agrees_with_iter_tensors(session, model, cache):
    for given in (cache, cache, False):
        loaded = load_model(session, model, cache=given)
        assert [*loaded] == [name for name, _ in iter_tensors(session, model)]
        assert all(same(loaded[name], array) for name, array in iter_tensors(session, model))


def test_names_of_equal_content_share_a_map(session, cache):
    create_model(session, "m", {}, {"a": np.zeros(9), "b": np.zeros(9), "c": np.ones(9)})
    loaded = load_model(session, "m", cache=cache)
    assert loaded["a"] is loaded["b"]
    assert len(files(cache)) == 2


def test_maps_cannot_be_written_to(session, model, cache):
    with pytest.raises(ValueError, match="read-only"):
        load_model(session, model, cache=cache)["noise"][0] = 1


def test_without_a_cache_each_name_has_an_array_to_write_to(session):
    create_model(session, "m", {}, {"a": np.zeros(9), "b": np.zeros(9)})
    loaded = load_model(session, "m", cache=False)
    loaded["a"][0] = 1
    assert loaded["b"][0] == 0


def test_models_share_what_they_have_in_common(session, model, cache):
    load_model(session, model, cache=cache)
    before = len(files(cache))
    create_model(session, "other", {}, example_tensors() | {"new": weights((9, 9))})
    load_model(session, "other", cache=cache)
    assert len(files(cache)) == before + 1


def test_what_is_damaged_is_read_again(session, model, cache):
    load_model(session, model, cache=cache)
    for path in files(cache):
        path.write_bytes(path.read_bytes()[:-1])
    assert is_example(load_model(session, model, cache=cache))
    assert is_example(load_model(session, model, cache=cache, verify=True))


def test_a_flipped_bit_is_mended_if_asked_for(session, model, cache):
    load_model(session, model, cache=cache)
    for path in files(cache):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert is_example(load_model(session, model, cache=cache, verify=True))
    assert is_example(load_model(session, model, cache=cache))


def test_a_deleted_model_does_not_come_from_the_cache(session, model, cache):
    load_model(session, model, cache=cache)
    delete_model(session, model)
    with pytest.raises(LookupError):
        load_model(session, "m", cache=cache)


def test_a_name_that_is_not_there(session, model, cache):
    with pytest.raises(TensorNotFound):
        load_model(session, model, names=["nothing"], cache=cache)


def test_a_folder_that_cannot_be_written_to_leaves_it_to_memory(session, model, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    assert is_example(load_model(session, model, cache=ReadCache(tmp_path / "file", 1 << 30)))
    assert "stay in memory" in caplog.text


def test_a_full_disk_leaves_the_rest_to_memory(session, model, cache, caplog):
    with a_disk_with_room_for(400_000):
        loaded = load_model(session, model, cache=cache)
    assert is_example(loaded)
    assert not any(array.flags.writeable for array in loaded.values())
    assert "stay in memory" in caplog.text
    assert list(cache.folder.rglob("*.partial")) == []
    assert is_example(load_model(session, model, cache=cache))


def test_a_lost_database_is_not_taken_for_a_full_disk(session, model, cache, monkeypatch):
    def lost(*_):
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr(loading, "read_pieces", lost)
    with pytest.raises(DatabaseUnavailable):
        load_model(session, model, cache=cache)


def test_a_model_larger_than_the_cache_keeps_what_has_a_place(session, model, tmp_path):
    cache = ReadCache(tmp_path / "cache", 2_000_000)  # not for the matrix of 3 MB
    for _ in range(2):
        with fetched_chunks(session) as fetched:
            assert is_example(load_model(session, model, cache=cache))
        assert cache.use().files == len(example_tensors()) - 1
    assert len(fetched) == 1


def test_others_make_room(session, tmp_path):
    cache = ReadCache(tmp_path / "cache", 400_000)
    for seed in range(3):
        create_model(session, "one", {}, {"t": weights((80_000,), seed)}, version=str(seed))
        load_model(session, f"one@{seed}", cache=cache)
        assert cache.use().files == 1


def test_writers_that_made_room_at_once_keep_to_the_size_together(session, tmp_path, monkeypatch):
    cache = ReadCache(tmp_path / "cache", 400_000)
    create_model(session, "one", {}, {"t": weights((80_000,), 1)})
    create_model(session, "two", {}, {"t": weights((80_000,), 2)})
    put = ReadCache.put

    def put_beside_another(self, *arguments):
        with monkeypatch.context() as patched:
            patched.setattr(ReadCache, "put", put)
            load_model(session, "two", cache=cache)
        put(self, *arguments)

    monkeypatch.setattr(ReadCache, "put", put_beside_another)
    loaded = load_model(session, "one", cache=cache)
    assert same(loaded["t"], weights((80_000,), 1))
    assert cache.use().files == 1


@pytest.mark.parametrize("is_cached", [True, False])
def test_progress_comes_to_the_whole_each_time(session, model, cache, is_cached):
    for _ in range(2):
        seen = []
        load_model(
            session, model, cache=cache if is_cached else False, progress=lambda *done, seen=seen: seen.append(done)
        )
        total = sum(array.nbytes for array in example_tensors().values())
        assert seen[-1] == ("load", total, total)
        assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_settings_say_where_and_how_large(monkeypatch, tmp_path):
    monkeypatch.setenv("ARC_HALO_CACHE_FOLDER", str(tmp_path))
    monkeypatch.setenv("ARC_HALO_CACHE_NBYTES", "123")
    assert (configured_cache().folder, configured_cache().max_nbytes) == (tmp_path, 123)
    monkeypatch.setenv("ARC_HALO_CACHE_NBYTES", "0")
    assert configured_cache() is None

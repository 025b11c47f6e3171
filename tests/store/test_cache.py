from __future__ import annotations

import multiprocessing
import os
import time
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from safetensors.numpy import load_file

from arc_halo.codecs.digest import TensorHasher
from arc_halo.dtypes import by_name, of_array
from arc_halo.store.cache import ReadCache
from tests.fixtures.tensors import arrays, same, weights

LONG_AGO = 9000


@pytest.fixture
def cache(tmp_path):
    return ReadCache(tmp_path / "new" / "cache", 1 << 30)


def content(array):
    """Digest, type and shape."""
    hasher = TensorHasher(of_array(array), array.shape)
    hasher.update(array.tobytes())
    return hasher.digest(), of_array(array), array.shape


def kept(cache, array):
    """The file of an array that is put."""
    cache.put(*content(array), [array.tobytes()])
    return cache.path(content(array)[0])


def age(path):
    os.utime(path, (time.time() - LONG_AGO,) * 2)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(array=arrays(), cut=st.integers(0, 40))
def test_any_array_comes_back(cache, array, cut):
    stored = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).reshape(array.shape)
    raw = stored.tobytes()
    cache.put(*content(stored), [raw[:cut], raw[cut:]])
    assert same(cache.get(*content(stored), verify=True), stored)
    assert cache.path(content(stored)[0]).stat().st_size == cache.file_nbytes(*content(stored))
    assert cache.get(bytes(32), *content(stored)[1:]) is None


def test_packed_types_come_back_as_bytes(cache):
    cache.put(bytes(32), by_name("F4"), (3, 4), [b"packed"])
    assert cache.get(bytes(32), by_name("F4"), (3, 4)).tobytes() == b"packed"


def test_a_file_is_a_safetensors_file(cache):
    array = weights((7, 5))
    assert same(load_file(kept(cache, array))["tensor"], array)


def test_files_are_their_owners_alone(cache):
    path = kept(cache, weights((7, 5)))
    assert path.stat().st_mode & 0o777 == 0o600
    assert {each.stat().st_mode & 0o777 for each in (cache.folder, path.parent)} == {0o700}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: bytes(len(content)),
        lambda _: b"",
    ],
    ids=["short", "long", "overwritten", "empty"],
)
def test_what_is_damaged_is_not_there_and_goes(cache, damage):
    array = weights((7, 5))
    path = kept(cache, array)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(*content(array)) is None
    assert not path.exists()


def test_a_flipped_bit_is_found_if_asked_for(cache):
    array = weights((7, 5))
    path = kept(cache, array)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert not same(cache.get(*content(array)), array)
    assert cache.get(*content(array), verify=True) is None
    assert not path.exists()


def flip(path):
    """Other bytes in a file whose times stay what they are, as a machine that stopped leaves them."""
    status = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_what_was_written_before_the_machine_started_is_compared_once(cache):
    array = weights((7, 5))
    path = kept(cache, array)
    os.utime(path, (0, 0))
    assert same(cache.get(*content(array)), array)
    assert path.stat().st_mtime > time.time() - 60
    flip(path)
    assert not same(cache.get(*content(array)), array)  # trusted until the machine stops
    os.utime(path, (0, 0))
    assert cache.get(*content(array)) is None
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_what_others_may_write_to_is_compared_each_time(cache, mode):
    array = weights((7, 5))
    path = kept(cache, array)
    path.chmod(mode)
    for _ in range(2):
        assert same(cache.get(*content(array)), array)
    flip(path)
    assert cache.get(*content(array)) is None


def test_what_another_user_wrote_is_compared_each_time(cache, monkeypatch):
    array = weights((7, 5))
    path = kept(cache, array)
    monkeypatch.setattr("arc_halo.store.cache.os.geteuid", lambda: path.stat().st_uid + 1)
    os.chown(path, max(path.stat().st_uid, 1), -1)
    flip(path)
    assert cache.get(*content(array)) is None


def work(folder, seed):
    """One of several processes: write, read and evict until it has seen enough; what it reads is what it asked for."""
    cache = ReadCache(folder, 40_000)
    random = np.random.default_rng(seed)
    for number in random.integers(0, 12, 150):
        array = weights((50, 50), int(number))
        found = cache.get(*content(array))
        if found is None:
            cache.evict(cache.file_nbytes(*content(array)))
            cache.put(*content(array), [array.tobytes()])
        else:
            assert same(found, array)


def test_processes_that_write_and_evict_at_once_see_right_bytes(cache):
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=work, args=(cache.folder, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    cache.evict()
    assert 0 < cache.use().nbytes <= 40_000
    assert list(cache.folder.rglob("*.partial")) == []


def test_a_map_outlives_a_fork_that_ends(cache):
    array = weights((300, 300))
    kept(cache, array)
    mapped = cache.get(*content(array))
    child = multiprocessing.get_context("fork").Process(target=same, args=(mapped, array))
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of forks beside threads
        child.start()
    child.join()
    assert child.exitcode == 0
    assert same(mapped, array)


def test_what_is_of_another_type_is_not_taken(cache):
    array = weights((7, 5))
    kept(cache, array)
    assert cache.get(content(array)[0], by_name("I32"), array.shape) is None


def test_a_write_that_fails_leaves_nothing(cache):
    def broken():
        yield b"some"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        cache.put(*content(weights((7, 5))), broken())
    assert [path for path in cache.folder.rglob("*") if path.is_file()] == []


def test_what_was_not_used_for_longest_goes(cache):
    first, second = weights((7, 5), 1), weights((7, 5), 2)
    paths = [kept(cache, each) for each in (first, second)]
    for path in paths:
        age(path)
    mapped = cache.get(*content(first))  # which is a use
    cache.max_nbytes = cache.use().nbytes
    assert cache.evict() == 0
    assert cache.evict(room=1) == cache.file_nbytes(*content(second))
    assert [path.exists() for path in paths] == [True, False]
    assert cache.clear().files == 1
    assert same(mapped, first)
    assert cache.use().nbytes == 0


def test_what_killed_writers_left_goes(cache):
    folder = kept(cache, weights((7, 5))).parent
    left, alive = folder / "left.partial", folder / "alive.partial"
    for path in (left, alive):
        path.write_bytes(b"part")
    age(left)
    cache.evict()
    assert (left.exists(), alive.exists()) == (False, True)
    assert cache.use().files == 1

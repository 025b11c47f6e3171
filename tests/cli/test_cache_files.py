"""``arc-halo cache files``."""

from __future__ import annotations

import pytest

from arc_halo.registry.loading import configured_cache
from tests.cli.command_line import CommandLine


@pytest.fixture
def arc_halo():
    return CommandLine("postgresql://nobody@localhost:1/none")  # it asks no database


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The configured cache, with two tensors."""
    monkeypatch.setenv("ARC_HALO_CACHE_FOLDER", str(tmp_path / "cache"))
    monkeypatch.setenv("ARC_HALO_CACHE_NBYTES", "20000000")
    found = configured_cache()
    for first in (1, 2):
        path = found.path(bytes([first]) * 32)
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(500))
    return found


def test_it_says_where_and_how_full(arc_halo, cache):
    assert arc_halo.says("cache", "files") == f"{cache.folder}: 2 tensors, 1.0 kB of 20.0 MB\n"
    expected = {"folder": str(cache.folder), "use": {"files": 2, "nbytes": 1000, "max_nbytes": 20_000_000}}
    assert arc_halo.json("cache", "files") == expected


def test_clear_removes_everything(arc_halo, cache):
    assert arc_halo.says("cache", "files", "--clear") == "removed 2 tensors, 1.0 kB\n"
    assert arc_halo.json("cache", "files", "--clear")["removed"]["files"] == 0
    assert cache.use().files == 0


def test_without_a_cache_there_is_nothing_to_tell(arc_halo, monkeypatch):
    monkeypatch.setenv("ARC_HALO_CACHE_NBYTES", "0")
    assert "no cache" in arc_halo.says("cache", "files")
    assert arc_halo.json("cache", "files") == {"folder": None, "use": None}
    assert arc_halo.says("cache", "files", "--clear") == "nothing to remove\n"

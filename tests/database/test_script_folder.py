from __future__ import annotations

from pathlib import Path

import pytest

import arc_halo
from arc_halo.database import migrate
from arc_halo.errors import SchemaNotAtHead


def package(folder, monkeypatch):
    """Pretend that the package sits in ``folder``."""
    module = folder / "arc_halo" / "database" / "migrate.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(migrate, "__file__", str(module))


def environment(folder):
    folder.mkdir(parents=True)
    (folder / "env.py").touch()
    return folder


def test_a_checkout_uses_its_own_folder(tmp_path, monkeypatch):
    package(tmp_path, monkeypatch)
    (tmp_path / "pyproject.toml").touch()
    environment(tmp_path / "arc_halo" / "_alembic")
    own = environment(tmp_path / "alembic")
    assert migrate.script_folder() == own


def test_an_installed_package_uses_its_copy(tmp_path, monkeypatch):
    package(tmp_path, monkeypatch)
    environment(tmp_path / "alembic")  # in site-packages that is the library
    copy = environment(tmp_path / "arc_halo" / "_alembic")
    assert migrate.script_folder() == copy


def test_without_either_it_says_so(tmp_path, monkeypatch):
    package(tmp_path, monkeypatch)
    with pytest.raises(SchemaNotAtHead, match="install arc-halo again"):
        migrate.script_folder()


def test_this_checkout_is_found():
    assert migrate.script_folder() == Path(arc_halo.__file__).resolve().parent.parent / "alembic"

from __future__ import annotations

import os
import stat

import pytest

from arc_halo.database.ownership import User, replace_file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "arc_halo.conf"


def test_a_file_is_replaced_where_it_differs(path):
    assert replace_file(path, "a = 1\n", None)
    assert not replace_file(path, "a = 1\n", None)
    assert replace_file(path, "a = 2\n", User(os.getuid(), os.getgid()))
    assert path.read_text() == "a = 2\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("target", ["precious", "missing"])
def test_a_planted_link_is_not_written_through(path, target):
    precious = path.with_name("precious")
    precious.write_text("whole")
    precious.chmod(0o644)
    path.with_name("arc_halo.conf.new").symlink_to(path.with_name(target))
    assert replace_file(path, "a = 1\n", User(os.getuid(), os.getgid()))
    assert path.read_text() == "a = 1\n"
    assert not path.is_symlink()
    assert (precious.read_text(), stat.S_IMODE(precious.stat().st_mode)) == ("whole", 0o644)
    assert not path.with_name("missing").exists()

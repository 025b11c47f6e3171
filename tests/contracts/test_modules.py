from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import arc_halo

PACKAGE = Path(arc_halo.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400
MAX_PUBLIC_NAMES = 15


def named(path):
    return path.relative_to(ROOT).as_posix()


def test_imports_keep_the_contracts():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    linted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_module_says_what_it_is_for_and_is_read_in_one_sitting(path):
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))
    assert len(text.splitlines()) <= MAX_LINES


def test_what_the_package_offers_is_little_and_documented():
    assert len(arc_halo.__all__) <= MAX_PUBLIC_NAMES
    for name in arc_halo.__all__:
        assert inspect.getdoc(getattr(arc_halo, name)), name


def test_the_package_lists_what_it_offers():
    assert set(arc_halo.__all__) <= set(dir(arc_halo))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = arc_halo.no_such_name


def test_importing_the_package_starts_nothing():
    script = "import sys, threading, arc_halo; print(threading.active_count(), 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1", "False"]


@pytest.mark.parametrize("forbidden", ["pickle", "marshal", "shelve"])
def test_nothing_is_ever_unpickled(forbidden):
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported = [alias.name for alias in node.names] + [getattr(node, "module", None)]
                assert forbidden not in imported, named(path)

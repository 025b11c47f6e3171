"""Workflows and .ci/run name commands and paths there are."""

from __future__ import annotations

import re

import pytest
from alembic import command

from tests.docs.pages import REPOSITORY, commands

SCRIPTS = (REPOSITORY / ".ci" / "run", *sorted((REPOSITORY / ".github" / "workflows").glob("*.yml")))


@pytest.fixture(params=SCRIPTS, ids=lambda path: path.name)
def script(request):
    return request.param.read_text(encoding="utf-8")


def test_commands_of_ours(script):
    named = re.findall(r"""\barc-halo["']? ((?:db|model) \w+|[a-z]+)""", script)
    assert [each for each in named if f"arc-halo {each}" not in commands()] == []


def test_commands_of_alembic(script):
    assert [each for each in re.findall(r"\balembic (\w+)", script) if not hasattr(command, each)] == []


def test_paths(script):
    tested = [path for paths in re.findall(r"\bpytest((?: [\w/]+)+)$", script, re.MULTILINE) for path in paths.split()]
    watched = [path for paths in re.findall(r"paths: \[(.+)\]", script) for path in re.findall(r'"([\w./]+)', paths)]
    assert [path for path in tested + watched if not (REPOSITORY / path).exists()] == []

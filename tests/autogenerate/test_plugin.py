"""Alembic finds the plugin, whoever is imported first and however often."""

from __future__ import annotations

import subprocess
import sys

import pytest
from alembic.runtime.plugins import Plugin
from alembic.util import PriorityDispatcher

import arc_halo.autogenerate
from arc_halo.autogenerate.scope import scope
from tests.autogenerate.project import new_metadata


@pytest.mark.parametrize(
    "statement",
    [
        "import alembic",
        "import alembic.autogenerate",
        "from alembic import command",
        "import arc_halo.autogenerate",
        "import arc_halo.autogenerate.scope",
        "import arc_halo",
        "import arc_halo.schema",
    ],
)
def test_any_import_may_come_first(statement):
    subprocess.run([sys.executable, "-W", "error", "-c", statement], check=True)


def test_it_is_registered_once():
    assert scope(new_metadata())["autogenerate_plugins"][-1] == arc_halo.autogenerate.PLUGIN
    with pytest.raises(ValueError, match="already registered"):
        Plugin(arc_halo.autogenerate.PLUGIN)


def test_alembic_takes_its_comparators():
    comparators = PriorityDispatcher()
    Plugin.populate_autogenerate_priority_dispatch(comparators, scope(new_metadata())["autogenerate_plugins"])

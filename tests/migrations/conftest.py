"""The fixtures of this folder."""

from tests.migrations.own import migrated, migrations
from tests.migrations.released import (
    expected,
    opened,
    release,
    release_templates,
    released_url,
    trained,
    upgraded,
)

__all__ = [
    "expected",
    "migrated",
    "migrations",
    "opened",
    "release",
    "release_templates",
    "released_url",
    "trained",
    "upgraded",
]

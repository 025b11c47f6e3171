"""The fixtures of this folder."""

from tests.migrations.own import migrated, migrations
from tests.migrations.released import expected, opened, release, released_url, trained, upgraded

__all__ = ["expected", "migrated", "migrations", "opened", "release", "released_url", "trained", "upgraded"]

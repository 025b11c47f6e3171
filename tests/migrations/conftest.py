"""The fixtures of this folder."""

from tests.migrations.own import migrated, migrations

__all__ = ["migrated", "migrations"]

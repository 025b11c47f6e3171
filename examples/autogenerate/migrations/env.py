"""Alembic's environment: the plugin has all that it takes."""

import os

from models import Base

from arc_halo.autogenerate.environment import run_migrations

run_migrations(Base.metadata, os.environ.get("DATABASE_URL", ""))

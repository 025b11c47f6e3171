"""``arc-halo model``: whole models into the database, out of it, looked at, compared, made into others."""

from arc_halo.cli.model import deriving, keeping, looking, moving
from arc_halo.cli.model.application import app

__all__ = ["app", "deriving", "keeping", "looking", "moving"]

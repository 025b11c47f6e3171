"""``arc-halo model``: whole models into the database, out of it, looked at, compared, made into others."""

# In the order in which --help lists their verbs.
from arc_halo.cli.model import moving, looking, keeping, deriving  # noqa: I001
from arc_halo.cli.model.application import app

__all__ = ["app", "deriving", "keeping", "looking", "moving"]

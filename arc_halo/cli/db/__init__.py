"""``arc-halo db``: the database itself, its schema and its health."""

# In the order in which --help lists their verbs.
from arc_halo.cli.db import migrating, comparing, linting, rehearsing  # noqa: I001
from arc_halo.cli.db.application import app

__all__ = ["app", "comparing", "linting", "migrating", "rehearsing"]

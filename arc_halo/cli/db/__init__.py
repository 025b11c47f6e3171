"""``arc-halo db``: the database itself, its schema and its health."""

# In the order in which --help lists their verbs.
from arc_halo.cli.db import migrating, comparing, linting, rehearsing, filling  # noqa: I001
from arc_halo.cli.db.application import app

__all__ = ["app", "comparing", "filling", "linting", "migrating", "rehearsing"]

"""``arc-halo reactor``: several models that answer as one; made, run, run again, drawn, measured and looked at."""

# In the order in which --help lists their verbs.
from arc_halo.cli.reactor import making, running, replaying, looking, telling, drawing, measuring, fitting  # noqa: I001
from arc_halo.cli.reactor.application import app

__all__ = ["app", "drawing", "fitting", "looking", "making", "measuring", "replaying", "running", "telling"]

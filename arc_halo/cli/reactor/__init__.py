"""``arc-halo reactor``: several models that answer as one; made, changed, run, replayed, drawn, measured, looked at."""

# In the order in which --help lists their verbs.
from arc_halo.cli.reactor import (  # noqa: I001
    making,
    changing,
    running,
    replaying,
    looking,
    telling,
    drawing,
    measuring,
    fitting,
)
from arc_halo.cli.reactor.application import app

__all__ = ["app", "changing", "drawing", "fitting", "looking", "making", "measuring", "replaying", "running", "telling"]

"""``arc-halo train``: runs looked at, compared, followed while they train, drawn, kept and deleted."""

# In the order in which --help lists their verbs.
from arc_halo.cli.train import looking, comparing, following, keeping  # noqa: I001
from arc_halo.cli.train.application import app

__all__ = ["app", "comparing", "following", "keeping", "looking"]

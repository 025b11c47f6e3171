"""``arc-halo cache``: what the caches hold and give, kept or deleted, and why a prompt misses."""

# In the order in which --help lists their verbs.
from arc_halo.cli.cache import looking, explaining, pinning, keeping, files  # noqa: I001
from arc_halo.cli.cache.application import app

__all__ = ["app", "explaining", "files", "keeping", "looking", "pinning"]

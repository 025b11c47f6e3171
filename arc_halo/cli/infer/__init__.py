"""``arc-halo infer``: prompts answered, sessions looked at, and their old figures dropped."""

# In the order in which --help lists their verbs.
from arc_halo.cli.infer import generating, looking, keeping  # noqa: I001
from arc_halo.cli.infer.application import app

__all__ = ["app", "generating", "keeping", "looking"]

"""The fixtures of this folder."""

from tests.autogenerate.project import project
from tests.autogenerate.roles import roles

__all__ = ["project", "roles"]

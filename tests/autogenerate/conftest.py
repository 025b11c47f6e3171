"""The fixture of this folder."""

from tests.autogenerate.project import project

__all__ = ["project"]

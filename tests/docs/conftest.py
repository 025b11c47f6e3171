"""The fixture of this folder."""

from tests.docs.reader import reader

__all__ = ["reader"]

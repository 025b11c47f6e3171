"""The page about the hub does what it says."""

import pytest

from tests.docs.pages import REPOSITORY
from tests.docs.reader import reader

__all__ = ["reader"]


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the library's own upload
def test_the_page_can_be_followed(reader):
    reader.read(REPOSITORY / "docs" / "integrations" / "hub.md")

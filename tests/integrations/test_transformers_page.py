"""The page about the Trainer does what it says."""

import pytest

from tests.docs.pages import REPOSITORY
from tests.docs.reader import reader

__all__ = ["reader"]


@pytest.mark.filterwarnings("ignore")  # what these libraries warn of is not ours
def test_the_page_can_be_followed(reader):
    reader.read(REPOSITORY / "docs" / "integrations" / "transformers.md")

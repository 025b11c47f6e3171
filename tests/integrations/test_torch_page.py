"""The page about PyTorch does what it says."""

from tests.docs.pages import REPOSITORY
from tests.docs.reader import reader

__all__ = ["reader"]


def test_the_page_can_be_followed(reader):
    reader.read(REPOSITORY / "docs" / "integrations" / "torch.md")

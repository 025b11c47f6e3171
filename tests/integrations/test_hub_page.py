"""The page about the hub does what it says."""

from pathlib import Path

import pytest

from tests.docs.pages import REPOSITORY
from tests.docs.reader import reader

__all__ = ["reader"]


@pytest.fixture
def model_on_the_hub(hub, reader):
    hub.publish("lab/demo", Path(reader.folder) / "model", "v1")


@pytest.mark.usefixtures("model_on_the_hub")
def test_the_page_can_be_followed(reader):
    reader.read(REPOSITORY / "docs" / "integrations" / "hub.md")

"""Pages of the core whose blocks need torch here and there, followed where it is installed."""

from __future__ import annotations

import pytest
import transformers

from tests.docs.pages import README, REPOSITORY, blocks
from tests.docs.reader import NEEDS_TORCH, reader

__all__ = ["reader"]

INFERENCE, ACTIVATIONS = (REPOSITORY / "docs" / f"{name}.md" for name in ("inference", "activations"))


@pytest.mark.parametrize("page", [README, INFERENCE, ACTIVATIONS], ids=lambda page: page.stem)
def test_the_page_can_be_followed_again_on_the_same_database(page, reader):
    assert transformers.__version__  # without it some blocks are left out
    python = [block for block in blocks(page) if block.language in ("python", "text")]
    assert any(NEEDS_TORCH.search(block.text) for block in python)
    for _ in range(2):
        for block in python:
            reader.follow(block)
        reader.forget()

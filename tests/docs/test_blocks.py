"""Every code block of the README and of docs/ does what it says."""

from __future__ import annotations

import pytest

from tests.docs.pages import PAGES, README, REPOSITORY, blocks

FIRST = "pip install -e . && arc-halo demo"
SECOND = "pip install -e '.[test]' && pytest"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_can_be_followed(page, reader):
    for block in blocks(page):
        reader.read(block)


def test_the_readme_begins_with_two_commands():
    lines = [line for block in blocks(README) if block.language == "sh" for line in block.lines]
    assert lines[:2] == [FIRST, SECOND]
    assert len([line for line in lines if line.startswith("pip")]) == 2


@pytest.mark.parametrize(
    ("file", "command"),
    [(".ci/run", SECOND), (".github/workflows/ci.yml", FIRST), (".github/workflows/ci.yml", SECOND)],
)
def test_the_two_commands_are_run_as_they_stand(file, command):
    lines = (REPOSITORY / file).read_text(encoding="utf-8").splitlines()
    assert command in [line.strip().removeprefix("- run: ") for line in lines]


@pytest.mark.parametrize("text", ["```rust\nfn main() {}\n```\n", "```\nls\n```\n", "```sh\nrm -rf ~\n```\n"])
def test_what_nobody_can_read_fails(text, reader, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    (block,) = blocks(page)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        reader.read(block)

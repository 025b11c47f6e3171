"""Every code block of the README and of docs/ does what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import select

from arc_halo import connect
from arc_halo.schema import CacheQuota
from tests.docs.pages import COMMAND_LINE, PAGES, README, REPOSITORY, blocks

FIRST = "pip install -e . && arc-halo demo"
SECOND = "pip install -e '.[test]' && pytest"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_can_be_followed(page, reader):
    reader.read(page)


def test_the_cells_of_the_readme_can_be_run_again(reader):
    for block in 2 * [block for block in blocks(README) if block.language == "python"]:
        reader.follow(block)


def test_pages_that_make_reactors_can_be_followed_on_one_database(reader):
    (typed,) = (block for block in blocks(README) if block.text.startswith("arc-halo model import model --name demo\n"))
    reader.follow(replace(typed, text=f"{typed.lines[0]}\n"))
    typed = replace(typed, text="".join(f"{line}\n" for line in typed.lines if "reactor" in line))
    docs = REPOSITORY / "docs"
    # What can only be made once comes last.
    for page in (blocks(docs / "members.md"), blocks(docs / "fusion.md"), _below(COMMAND_LINE, "## Reactors"), [typed]):
        for block in page:
            reader.follow(block)
        reader.forget()


def _below(page, title):
    first = page.read_text(encoding="utf-8").split(f"{title}\n")[0].count("\n")
    return [block for block in blocks(page) if block.line > first]


@pytest.mark.parametrize("name", ["inference", "responses", "activations", "attention"])
def test_a_page_can_be_followed_again_on_the_same_database(name, reader):
    page = REPOSITORY / "docs" / f"{name}.md"
    for _ in range(2):
        reader.read(page)
        reader.forget()
    with connect(reader.url) as database, database.session() as session:
        assert session.scalars(select(CacheQuota)).all() == []


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


UNREADABLE = {
    "an unknown language": "```rust\nfn main() {}\n```\n",
    "no language": "```\nls\n```\n",
    "a command nobody knows": "```sh\nrm -rf model\n```\n",
    "a command that fails": "```sh\narc-halo model show nothing\n```\n",
    "a later command that fails": "```sh\narc-halo --version\narc-halo model show nothing\n```\n",
    "a script that is not there": "```sh\npython benchmarks/nothing.py\n```\n",
    "a query without rows": "```sql\nSELECT name FROM arc_halo.models WHERE name = 'nothing'\n```\n",
    "output that was not printed later": (
        "```sh\narc-halo --version\n```\n\n```sh\narc-halo model list\n```\n\n```text\nnothing@1\n```\n"
    ),
    "a table that is not there": "```mermaid\nerDiagram\n  models ||--o{ nothings : has\n```\n",
    "output that Python did not print": "```python\nprint(1)\n```\n\n```text\n2\n```\n",
    "rows that a query did not find": "```sql\nSELECT 'a', 1\n```\n\n```text\na | 2\n```\n",
    "output that was not printed": "```sh\narc-halo --version\n```\n\n```text\narc-halo 0.0.0\n```\n",
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_a_page_that_is_wrong_fails(text, reader, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        reader.read(page)

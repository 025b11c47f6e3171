"""The documentation as data: its pages and their code blocks, and the commands there are to document."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from arc_halo.cli import app

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
COMMAND_LINE = REPOSITORY / "docs" / "command-line.md"
PAGES = (README, *sorted((REPOSITORY / "docs").glob("*.md")))
INTEGRATIONS = tuple(sorted((REPOSITORY / "docs" / "integrations").glob("*.md")))
"""Pages that are followed by the tests of what they are about, in `tests/integrations`."""
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is the number of its first line in the page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def next_line(self) -> int:
        """The first line of a block that stands right below, with a blank line between."""
        return self.line + self.text.count("\n") + 3

    @property
    def lines(self) -> list[str]:
        """Lines that say something: no blank ones and no comments."""
        stripped = (line.strip() for line in self.text.splitlines())
        return [line for line in stripped if line and not line.startswith("#")]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(page, text.count("\n", 0, match.start("text")) + 1, match["language"], match["text"])
        for match in _FENCE.finditer(text)
    ]
    assert text.count("```") == 2 * len(found), f"{page}: a fence is not closed, or is no line of its own"
    return found


def prose(page: Path) -> str:
    """The page without its blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def commands() -> dict[str, Any]:
    """Every command of the command line by what is typed for it."""
    return dict(_walk("arc-halo", typer.main.get_command(app)))


def _walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
    for child, below in (children or {}).items():
        yield from _walk(f"{name} {child}", below)

"""What a parser may make of any bytes: a value, or a typed error that can be shown in one line."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from arc_halo.errors import ArcHaloError

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parent
CORPUS = FOLDER / "corpus"
NAMES = sorted(path.stem for path in (FOLDER / "targets").glob("[a-z]*.py"))


class Target(Protocol):
    """A module of ``targets``: one parser, and what is known of its input."""

    TOKENS: tuple[bytes, ...]
    """Words that a fuzzer would take long to find by itself."""

    def read(self, data: bytes, folder: Path) -> object:
        """Parse, and check what came out against a second opinion; ``folder`` is for files."""

    def mend(self, data: bytes) -> bytes:
        """The input with lengths and counts that agree again, so that what changed is what lies behind them."""

    def seeds(self) -> Iterator[bytes]:
        """Valid inputs to begin with."""


def target(name: str) -> Target:
    return cast("Target", import_module(f"tests.fuzz.targets.{name}"))


def outcome(parser: Target, data: bytes, folder: Path) -> object:
    """The parser's value or its typed error; anything else is raised."""
    try:
        return parser.read(data, folder)
    except ArcHaloError as error:
        message = str(error)
        assert message, "an error without a message"
        assert message.isprintable(), f"a message that is not one printable line: {message!r:.200}"
        return error

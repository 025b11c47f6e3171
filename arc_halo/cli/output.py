"""What commands print: tables and sizes for people, JSON for programs."""

from __future__ import annotations

import datetime as dt
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

_PIPED_WIDTH: Final = 10_000


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, or, where it is piped, as wide as what is printed: nothing is cut.

    Names come from files and databases, so nothing in them is taken for markup.
    """
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = _PIPED_WIDTH
    return made


def say(*parts: str | Text | tuple[str, str]) -> None:
    """Print a line; a part may be a text with its style."""
    console().print(Text.assemble(*parts), soft_wrap=True)


def say_first(lines: Sequence[Text], limit: int = 5) -> None:
    """Print the first few of many lines, and how many more there are."""
    for line in lines[:limit]:
        say(line)
    if (more := len(lines) - limit) > 0:
        say(f"and {more:,} more; --json has all")


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Print rows under headers; columns named in ``right`` are numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in headers:
        table.add_column(
            header, justify="right" if header in right else "left", overflow="fold", no_wrap=header in right
        )
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(shown(cell)) for cell in row))
    console().print(table)


def print_json(value: object) -> None:
    """Print JSON: keys as they are, times in ISO 8601, digests in hexadecimal, null for what is not finite."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, allow_nan=False, default=_encode) + "\n")


def print_json_line(value: object) -> None:
    """The same on a line of its own, for programs that read one answer after the other."""
    sys.stdout.write(json.dumps(_plain(value), allow_nan=False, default=_encode) + "\n")
    sys.stdout.flush()


def print_error(message: str) -> None:
    """One line on stderr."""
    line = Text.assemble(("error: ", "bold red"), shown(" ".join(message.split())))
    console(stderr=True).print(line, soft_wrap=True)


def confirm(question: str) -> None:
    """Ask on stderr before something is deleted; ends the command unless the answer, typed or piped, is yes."""
    try:
        if sys.stdin is not None:
            typer.confirm(question, abort=True, err=True)
            return
    except typer.Abort as abort:
        if not isinstance(abort.__context__, EOFError) or sys.stdin.isatty():
            raise  # no, or ^C, or ^D
        typer.echo(err=True)  # the question stands on this line
    print_error("nobody can be asked, for stdin is no terminal; --yes deletes without asking")
    raise typer.Exit(1)


def print_interruption(interruption: KeyboardInterrupt) -> None:
    """One line on stderr, with what is noted of what is stored and what is not."""
    screen = console(stderr=True)
    if screen.is_terminal:
        screen.print()  # ^C stands on this one
    screen.print(shown("; ".join(["interrupted", *getattr(interruption, "__notes__", [])])), soft_wrap=True)


def shown(value: object) -> str:
    """Text that is safe on a terminal: what cannot be printed is escaped."""
    text = (
        "" if value is None else f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    )
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def size(nbytes: int) -> str:
    """Bytes in decimal units, as file managers and model hubs count them."""
    return decimal(nbytes) if nbytes >= 0 else f"-{decimal(-nbytes)}"


def count(number: int, noun: str) -> str:
    """A number with its noun: ``1 chunk``, ``1,024 chunks``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def some(names: Sequence[str], most: int = 3) -> str:
    """Names in a sentence: ``a, b, c and 2 more``."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _plain(value: Any) -> Any:
    """Dataclasses as mappings; null for numbers that JSON has no word for."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _encode(value: object) -> str:
    if isinstance(value, dt.datetime):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else str(value)

"""What the command lines of all benchmarks have: a size, a folder that is gone afterwards, and where results go."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from report import BEGIN, END, replace_section

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from report import Goal


def command_line(description: str | None, tiny: str = "synthetic, to see that it runs") -> argparse.ArgumentParser:
    """A parser with the options that all have; ``tiny`` says what the small size is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "full"), default="full", help=f"tiny: {tiny}")
    parser.add_argument("--json", action="store_true", help="every number as JSON, not tables")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the results in this Markdown file")
    return parser


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[tuple[Path, ExitStack]]:
    """A folder, and what is to be closed before it is deleted."""
    folder = Path(tempfile.mkdtemp(prefix="arc-halo-benchmark-", dir=parent))
    try:
        with ExitStack() as resources:
            yield folder, resources
    finally:
        shutil.rmtree(folder)


def publish(
    options: argparse.Namespace,
    results: Mapping[str, Any],
    reached: Iterable[Goal],
    markdown: str,
    marks: tuple[str, str] = (BEGIN, END),
) -> None:
    """Print results as asked for, and write them between the marks of the file that was named."""
    if options.json:
        print(json.dumps({**results, "goals": [asdict(goal) for goal in reached]}, indent=2))
    else:
        print(markdown)
    if options.write:
        replace_section(options.write, markdown, *marks)

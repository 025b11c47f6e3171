"""Take what reaches code that nothing smaller does into a corpus: ``python -m tests.fuzz.minimise TARGET FOLDER``.

Files named ``past-...`` are what once broke a parser: they always stay.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fuzz.outcome import CORPUS, NAMES, outcome, target

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.fuzz.outcome import Target

MAX_NBYTES = 4096
PAST = "past-"


def smallest(parser: Target, inputs: Iterable[bytes], folder: Path) -> list[bytes]:
    """The inputs, small ones first, that add a step from one line of the package to another."""
    kept, reached = [], set()
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        steps = _steps(parser, data, folder)
        if steps - reached:
            reached |= steps
            kept.append(data)
    return kept


def _steps(parser: Target, data: bytes, folder: Path) -> set[Any]:
    steps: set[Any] = set()

    def trace_call(frame, _event, _argument):
        if "arc_halo/" not in frame.f_code.co_filename:
            return None
        before = 0

        def trace_line(frame, event, _argument):
            nonlocal before
            steps.add((frame.f_code, before, frame.f_lineno, event))
            before = frame.f_lineno
            return trace_line

        return trace_line

    sys.settrace(trace_call)
    try:
        outcome(parser, data, folder)
    finally:
        sys.settrace(None)
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("folder", type=Path, nargs="*", help="of the fuzzer's work: WORK/found")
    arguments = parser.parse_args()
    chosen, corpus = target(arguments.target), CORPUS / arguments.target
    corpus.mkdir(exist_ok=True)
    known = [path for path in corpus.iterdir() if not path.name.startswith(PAST)]
    files = [*known, *(path for folder in arguments.folder for path in folder.iterdir())]
    inputs = [*chosen.seeds(), *(path.read_bytes() for path in files if path.stat().st_size <= MAX_NBYTES)]
    with tempfile.TemporaryDirectory() as scratch:
        kept = smallest(chosen, inputs, Path(scratch))
    for path in known:
        path.unlink()
    for data in kept:
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    print(f"{arguments.target}: {len(kept)} files, {sum(map(len, kept))} bytes")  # noqa: T201  # a script


if __name__ == "__main__":
    main()

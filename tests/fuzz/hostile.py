"""Payloads that were true once, changed here and there: ``python -m tests.fuzz.hostile TARGET --inputs N``.

For codecs, whose native part no fuzzer is told the coverage of: it begins with what a true payload reaches. A process
of its own, because the finding looked for is that it dies; the input it died of is in ``--last``.
"""

from __future__ import annotations

import argparse
import mmap
import random
import resource
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz.outcome import NAMES, outcome, target

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_NBYTES = 32_768
MAX_GROWTH_NBYTES = 64 << 20
INTEGERS = (0, 1, -1, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, -0x80000000, 1 << 30)
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def changed(data: bytes, choose: random.Random) -> bytes:
    """The input with one to four changes."""
    result = bytearray(data)
    for _ in range(choose.randint(1, 4)):
        place = choose.randrange(len(result) + 1)
        match choose.randrange(6):
            case 0:
                result[place : place + 1] = choose.randbytes(1)
            case 1:
                result[place : place + 4] = (choose.choice(INTEGERS) & 0xFFFFFFFF).to_bytes(4, "little")
            case 2:
                result[place : place + 1] = bytes(each ^ 1 << choose.randrange(8) for each in result[place : place + 1])
            case 3:
                del result[place : place + choose.randint(1, 16)]
            case 4:
                start = choose.randrange(len(result) + 1)
                result[place:place] = result[start : start + choose.randint(1, 64)]
            case _:
                del result[place:]
    return bytes(result[:MAX_NBYTES])


def inputs(name: str, seed: int) -> Iterator[bytes]:
    """Without end; three in four have lengths that agree again."""
    choose, parser = random.Random(seed), target(name)
    seeds = [data for data in parser.seeds() if len(data) <= MAX_NBYTES]
    while True:
        data = changed(choose.choice(seeds), choose)
        yield data if choose.randrange(4) == 0 else parser.mend(data)[:MAX_NBYTES]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--last", type=Path, required=True, help="a file that holds the input at work, length first")
    arguments = parser.parse_args()
    arguments.last.write_bytes(bytes(4 + MAX_NBYTES))
    read, made = 0, inputs(arguments.target, arguments.seed)
    chosen = target(arguments.target)
    with (
        tempfile.TemporaryDirectory() as scratch,
        arguments.last.open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as last,
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(arguments.inputs):
            data = next(made)
            last[: 4 + len(data)] = len(data).to_bytes(4, "little") + data
            read += not isinstance(outcome(chosen, data, Path(scratch)), Exception | None)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * RSS_UNIT
    assert grown <= MAX_GROWTH_NBYTES, f"memory grew by {grown} bytes"
    print(f"{read} of {arguments.inputs} were read")  # noqa: T201  # a script


if __name__ == "__main__":
    main()

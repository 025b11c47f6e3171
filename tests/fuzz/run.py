"""Fuzz one parser with atheris: ``python -m tests.fuzz.run TARGET --seconds N``; needs the extra ``fuzz``.

What is found to reach new code is written to the work folder, from where `tests.fuzz.minimise` takes it into the
corpus; so is an input that raises what is no typed error, and the exit code is not 0.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

from tests.fuzz.outcome import CORPUS, NAMES, outcome, target

TIMEOUT_SECONDS = 10
RSS_MEBIBYTES = 1024
MAX_INPUT_NBYTES = 16_384
UNMENDED = 4  # one input in so many keeps lengths that lie


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    parser.add_argument("--work", type=Path, help="where inputs are written; a temporary folder by default")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="arc-halo-fuzz-"))
    work.mkdir(parents=True, exist_ok=True)
    _fuzz(arguments.target, arguments.seconds, arguments.seed, work)


def _fuzz(name: str, seconds: int, seed: int, work: Path) -> None:
    import atheris  # noqa: PLC0415  # the package is there for Linux only

    with atheris.instrument_imports(include=["arc_halo.formats", "arc_halo.codecs"]):
        parser = target(name)
    found, files = work / "found", work / "files"
    for folder in (found, files):
        folder.mkdir(exist_ok=True)
    for data in parser.seeds():
        (found / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    dictionary = work / "tokens.dict"
    dictionary.write_text("".join(f'"{_escaped(token)}"\n' for token in parser.TOKENS))
    options = {
        "max_total_time": seconds,
        "timeout": TIMEOUT_SECONDS,
        "rss_limit_mb": RSS_MEBIBYTES,
        "max_len": MAX_INPUT_NBYTES,
        "reduce_inputs": 0,  # native decoders are not instrumented: a shorter input may reach less of them
        "seed": seed,
        "dict": dictionary,
        "artifact_prefix": f"{work}/",
    }
    command = [sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(found)]
    if (CORPUS / name).is_dir():
        command.append(str(CORPUS / name))

    def mutate(data: bytes, max_nbytes: int, seed: int) -> bytes:
        mutated: bytes = atheris.Mutate(data, max_nbytes)
        return mutated if seed % UNMENDED == 0 else parser.mend(mutated)[:max_nbytes]

    atheris.Setup(command, lambda data: outcome(parser, data, files), custom_mutator=mutate)
    atheris.Fuzz()


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


if __name__ == "__main__":
    main()

"""What was measured, as tables of Markdown, and beside it what was aimed at."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from memory import Peaks

NAIVE, COPY = "naive bytea", "raw COPY"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


@dataclass(frozen=True)
class Measured:
    """One store at one precision: seconds of each model in turn, and the bytes all of them take."""

    store: str
    precision: str
    model_nbytes: int
    saved_seconds: list[float]
    loaded_seconds: list[float]
    again_seconds: list[float]
    stored_nbytes: int
    payload_nbytes: int

    @property
    def raw_nbytes(self) -> int:
        """Raw bytes of all models."""
        return self.model_nbytes * len(self.loaded_seconds)


@dataclass(frozen=True)
class Slices:
    """Reading few rows of a big matrix: the median time, and the most chunks any read visited."""

    store: str
    seconds: float
    chunk_count: int


@dataclass(frozen=True)
class Results:
    """All of one run."""

    origin: str
    model_count: int
    machine: dict[str, str]
    measured: list[Measured]
    slices: list[Slices]
    memory: list[Peaks]

    def of(self, store: str, precision: str) -> Measured:
        """The measurements of one store."""
        (found,) = (each for each in self.measured if (each.store, each.precision) == (store, precision))
        return found


@dataclass(frozen=True)
class Goal:
    """What was aimed at, what came of it, and whether that is enough."""

    aim: str
    measured: str
    met: bool


def rate(nbytes: int, seconds: Sequence[float]) -> float:
    """Median MB/s."""
    return nbytes / median(seconds) / 1e6


def faster(peer: Sequence[float], seconds: Sequence[float]) -> float:
    """How many times faster than a peer: the median over models, each stored by both within seconds."""
    return median(theirs / ours for theirs, ours in zip(peer, seconds, strict=True))


def goals(results: Results) -> list[Goal]:
    """The goals a store of bytes is held to."""
    return [*_of_size(results), *_of_import(results), *_of_load(results), *_of_slices(results), *_of_memory(results)]


def _of_size(results: Results) -> Iterable[Goal]:
    for policy, most, aim in (("dense", 0.663 * 1.01, "0.670: ZipNN's ratio and 1 %"), ("fast", 0.69, "0.690")):
        measured = results.of(f"Arc-Halo {policy}", "BF16")
        ratio = measured.payload_nbytes / measured.raw_nbytes
        yield Goal(f"`{policy}`, bf16: payload at most {aim}", f"{ratio:.4f}", ratio <= most)


def _of_import(results: Results) -> Iterable[Goal]:
    for precision in ("F32", "BF16"):
        fast = results.of("Arc-Halo fast", precision).saved_seconds
        for peer, least in ((NAIVE, 2.0), (COPY, 1.0)):
            ratio = faster(results.of(peer, precision).saved_seconds, fast)
            aim = f"`fast`, {precision}: import at least {least:g} times as fast as {peer}"
            yield Goal(aim, f"{ratio:.2f}", ratio >= least)
    for precision in ("F32", "BF16"):
        fast_again = results.of("Arc-Halo fast", precision)
        speed = rate(fast_again.model_nbytes, fast_again.again_seconds)
        yield Goal(f"{precision}: unchanged import at least 800 MB/s", f"{speed:.0f}", speed >= 800)


def _of_load(results: Results) -> Iterable[Goal]:
    for precision in ("F32", "BF16"):
        balanced = results.of("Arc-Halo balanced", precision)
        speed = rate(balanced.model_nbytes, balanced.loaded_seconds)
        yield Goal(f"`balanced`, {precision}: load at least 400 MB/s", f"{speed:.0f}", speed >= 400)
        ratio = faster(results.of(NAIVE, precision).loaded_seconds, balanced.loaded_seconds)
        aim = f"`balanced`, {precision}: load at least 5 times as fast as {NAIVE}"
        yield Goal(aim, f"{ratio:.1f}", ratio >= 5)


def _of_slices(results: Results) -> Iterable[Goal]:
    (balanced,) = (each for each in results.slices if each.store == "Arc-Halo balanced")
    aim = "10 rows of an embedding matrix: at most 2 chunks and 5 ms"
    found = f"{balanced.chunk_count} chunks, {balanced.seconds * 1e3:.1f} ms"
    yield Goal(aim, found, balanced.chunk_count <= 2 and balanced.seconds <= 0.005)


def _of_memory(results: Results) -> Iterable[Goal]:
    for peaks in results.memory:
        aim = f"{peaks.content}: at most 64 MiB over a file of 1 MiB"
        found = f"import {peaks.imported:+.0f}, export {peaks.exported:+.0f} MiB"
        yield Goal(aim, found, max(peaks.imported, peaks.exported) <= 64)


def to_markdown(results: Results, reached: Iterable[Goal]) -> str:
    """All tables of a run."""
    first = results.measured[0]
    parts = [
        f"Models: {results.model_count}, {results.origin}; {first.model_nbytes / 1e6:.1f} MB each in fp32.",
        _table(["on", ""], [[name, value] for name, value in results.machine.items()]),
    ]
    for precision in dict.fromkeys(each.precision for each in results.measured):
        parts += [f"### {precision}", _comparison(results, precision)]
    parts += ["### Goals", _table(["aim", "measured", "met"], [_goal_row(goal) for goal in reached])]
    return "\n\n".join(parts) + "\n"


def _goal_row(goal: Goal) -> list[str]:
    return [goal.aim, goal.measured, "yes" if goal.met else "**no**"]


def _comparison(results: Results, precision: str) -> str:
    columns = ["", "save s", "MB/s", "x naive", "x COPY", "load s", "MB/s", "x naive", "x COPY"]
    columns += ["unchanged MB/s", "10 rows ms", "stored MB", "payload MB", "payload / raw"]
    naive, copy = results.of(NAIVE, precision), results.of(COPY, precision)
    rows = []
    for each in results.measured:
        if each.precision != precision:
            continue
        saved = _speeds(each.model_nbytes, each.saved_seconds, naive.saved_seconds, copy.saved_seconds)
        loaded = _speeds(each.model_nbytes, each.loaded_seconds, naive.loaded_seconds, copy.loaded_seconds)
        rows.append([each.store, *saved, *loaded, *_again(results, each), *_sizes(each)])
    return _table(columns, rows)


def _speeds(nbytes: int, seconds: list[float], naive: list[float], copy: list[float]) -> list[str]:
    if not seconds:
        return [""] * 4
    speeds = (f"{sum(seconds):.2f}", f"{rate(nbytes, seconds):.0f}")
    return [*speeds, f"{faster(naive, seconds):.2f}", f"{faster(copy, seconds):.2f}"]


def _again(results: Results, each: Measured) -> list[str]:
    again = f"{rate(each.model_nbytes, each.again_seconds):.0f}" if each.again_seconds else ""
    slices = [f"{s.seconds * 1e3:.1f}" for s in results.slices if s.store == each.store and each.precision == "F32"]
    return [again, *(slices or [""])]


def _sizes(each: Measured) -> list[str]:
    if not each.saved_seconds:
        return [""] * 3
    ratio = each.payload_nbytes / each.raw_nbytes
    return [f"{each.stored_nbytes / 1e6:.1f}", f"{each.payload_nbytes / 1e6:.1f}", f"{ratio:.3f}"]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def goal_table(goals: Iterable[Goal]) -> str:
    """What was aimed at, and whether it was reached."""
    return table(["aim", "measured", "met"], [(g.aim, g.measured, "yes" if g.met else "**no**") for g in goals])


def replace_section(path: Path, markdown: str, begin_mark: str = BEGIN, end_mark: str = END) -> None:
    """Put results between the two marks of a file."""
    before, begin, rest = path.read_text().partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not (begin and end):
        raise SystemExit(f"{path} needs the lines {begin_mark} and {end_mark}")
    path.write_text(f"{before}{begin_mark}\n\n{markdown}\n{end_mark}{after}")

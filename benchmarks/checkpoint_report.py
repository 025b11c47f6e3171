"""What checkpoints take and how long training waits for them, as tables of Markdown, beside what was aimed at."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from checkpoint_series import BF16
from report import Goal, goal_table, table

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGIN, END = "<!-- checkpoints: begin -->", "<!-- checkpoints: end -->"


@dataclass(frozen=True)
class Saved:
    """A series in one way: bytes of each checkpoint in turn, seconds of saving each and of loading the last."""

    series: str
    way: str
    nbytes: list[int]
    saved_seconds: list[float]
    loaded_seconds: list[float]
    weights_nbytes: int

    @property
    def second_share(self) -> float:
        """The second checkpoint, over the first."""
        return self.nbytes[1] / self.nbytes[0]


@dataclass(frozen=True)
class Stall:
    """A state of so many bytes: seconds to copy it in memory, and seconds that a save in the background held it up."""

    nbytes: int
    copied_seconds: list[float]
    stalled_seconds: list[float]

    @property
    def ratio(self) -> float:
        """The median wait over the median copy; the first save, which makes the buffer, is not counted."""
        return median(self.stalled_seconds[1:]) / median(self.copied_seconds[1:])


@dataclass(frozen=True)
class Results:
    """All of one run."""

    machine: dict[str, str]
    saved: list[Saved]
    stall: Stall

    def of(self, series: str, way: str) -> Saved:
        """The measurements of one way."""
        (found,) = (each for each in self.saved if (each.series, each.way) == (series, way))
        return found


def goals(results: Results) -> list[Goal]:
    """What checkpoints are held to."""
    return [*_of_series(results), *_of_stall(results)]


def _of_series(results: Results) -> Iterator[Goal]:
    for policy in ("fast", "balanced", "dense"):
        share = results.of("LoRA fine-tune", f"Arc-Halo {policy}").second_share
        yield Goal(f"`{policy}`, LoRA: second checkpoint below 2 % of the first", f"{share:.2%}", share < 0.02)
    for series, policy, most in (
        ("full fine-tune", "balanced", 1.0),
        ("full fine-tune", "dense", 1.0),
        (BF16, "balanced", 1.0),
        (BF16, "dense", 0.88),
    ):
        theirs = sum(results.of(series, "BitX").nbytes)
        ratio = sum(results.of(series, f"Arc-Halo {policy}").nbytes) / theirs
        yield Goal(f"`{policy}`, {series}: at most {most:g} x BitX", f"{ratio:.3f}", ratio <= most)


def _of_stall(results: Results) -> Iterator[Goal]:
    ratio = results.stall.ratio
    yield Goal("training waits for a save at most 1.2 x one copy of the state", f"{ratio:.2f}", ratio <= 1.2)


def to_markdown(results: Results, reached: list[Goal]) -> str:
    """All tables of a run."""
    parts = [table(["on", ""], results.machine.items())]
    for series in dict.fromkeys(each.series for each in results.saved):
        rows = [_row(each) for each in results.saved if each.series == series]
        headings = ["", "first MB", "second MB", "second / first", "all MB", "save s", "load MB/s"]
        parts += [f"### {series[0].upper()}{series[1:]}\n", table(headings, rows)]
    stall = results.stall
    parts += [
        f"### How long training waits\n\nA state of {stall.nbytes / 1e6:,.0f} MB:\n",
        table(
            ["", "ms, median"],
            [
                ("one copy of it into memory that is there", f"{median(stall.copied_seconds[1:]) * 1e3:.0f}"),
                ("`save_checkpoint(wait=False)`", f"{median(stall.stalled_seconds[1:]) * 1e3:.0f}"),
                ("the same, the first time", f"{stall.stalled_seconds[0] * 1e3:.0f}"),
            ],
        ),
    ]
    return "\n".join([*parts, "### Goals of checkpoints\n", goal_table(reached)])


def _row(each: Saved) -> list[str]:
    first, second, *_ = each.nbytes
    loads = f"{each.weights_nbytes / median(each.loaded_seconds) / 1e6:.0f}" if each.loaded_seconds else ""
    saves = f"{median(each.saved_seconds):.2f}" if each.saved_seconds else ""
    sizes = [f"{nbytes / 1e6:.2f}" for nbytes in (first, second)]
    return [each.way, *sizes, f"{each.second_share:.2%}", f"{sum(each.nbytes) / 1e6:.1f}", saves, loads]

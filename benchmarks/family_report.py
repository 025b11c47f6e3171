"""What families of models take and how fast they load, as tables of Markdown, and beside it what was aimed at."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from report import Goal, goal_table, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from family_peers import CodecSpeed

BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
FILES = "safetensors files"


@dataclass(frozen=True)
class Stored:
    """What a family takes in one way: all of it, without rows and indexes, and the first checkpoint of that."""

    what: str
    way: str
    raw_nbytes: int
    nbytes: int
    payload_nbytes: int
    first_nbytes: int
    seconds: float
    cpu_seconds: float

    @property
    def delta_nbytes(self) -> int:
        """The payload of all checkpoints but the first, which has nothing to lean on."""
        return self.payload_nbytes - self.first_nbytes


@dataclass(frozen=True)
class Loaded:
    """Loading one version, whose deltas are so deep."""

    what: str
    policy: str
    depth: int
    nbytes: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """MB/s."""
        return self.nbytes / self.seconds / 1e6

    @property
    def core_rate(self) -> float:
        """MB/s of a core."""
        return self.nbytes / self.cpu_seconds / 1e6


@dataclass(frozen=True)
class Results:
    """All of one run."""

    origin: str
    machine: dict[str, str]
    stored: list[Stored]
    loaded: list[Loaded]
    speeds: dict[str, list[CodecSpeed]]

    def of(self, what: str, way: str) -> Stored:
        """One family in one way."""
        (found,) = (each for each in self.stored if (each.what, each.way) == (what, way))
        return found


def goals(results: Results) -> list[Goal]:
    """What the store of families is held to."""
    return [*_of_size(results), *_of_speed(results)]


def _of_size(results: Results) -> Iterator[Goal]:
    dense, balanced, peer = (results.of("BF16", way) for way in ("Arc-Halo dense", "Arc-Halo balanced", "BitX"))
    for aim, ratio, most in (
        ("`dense`, BF16: payload of the deltas", dense.delta_nbytes / peer.delta_nbytes, 0.82),
        ("`dense`, BF16: the family with rows and indexes", dense.nbytes / peer.nbytes, 0.88),
        ("`balanced`, BF16: payload of the deltas", balanced.delta_nbytes / peer.delta_nbytes, 1.0),
        ("`balanced`, BF16: the family with rows and indexes", balanced.nbytes / peer.nbytes, 1.0),
    ):
        yield Goal(f"{aim} at most {most:.2f} of BitX's", f"{ratio:.3f}", ratio <= most)


def _of_speed(results: Results) -> Iterator[Goal]:
    for what, speeds in results.speeds.items():
        balanced = speeds[what == "BF16"]
        aim = f"{what}, {balanced.name}: encode 121, decode 160 MB/s of one core, ZipLLM's on its machine"
        is_met = balanced.encode >= 121 and balanced.decode >= 160
        yield Goal(aim, f"{balanced.encode:.0f}, {balanced.decode:.0f}", is_met)
        shallow = [each for each in results.loaded if (each.what, each.policy) == (what, "balanced")]
        slowest = min(each.rate for each in shallow)
        yield Goal(f"{what}, `balanced`: load at least 250 MB/s at any depth", f"{slowest:.0f}", slowest >= 250)


def to_markdown(results: Results, reached: Sequence[Goal]) -> str:
    """Everything as tables."""
    parts = [f"{results.origin}.\n", table(["", ""], results.machine.items()), "### Sizes\n"]
    parts += [_size_table(results, what) for what in dict.fromkeys(each.what for each in results.stored)]
    parts += ["### Load, by the depth of deltas\n", _load_table(results)]
    speeds = [
        (what, each.name, f"{each.ratio:.3f}", f"{each.encode:.0f}", f"{each.decode:.0f}")
        for what, family in results.speeds.items()
        for each in family
    ]
    headings = ["family", "codec", "payload / raw", "encode MB/s", "decode MB/s"]
    parts += ["### Codecs of deltas, one thread\n", table(headings, speeds)]
    return "\n".join([*parts, "### Goals\n", goal_table(reached)])


def _size_table(results: Results, what: str) -> str:
    peer = results.of(what, "BitX")
    headings = [what, "MB", "of the files", "of BitX", "payload of BitX", "deltas MB", "deltas of BitX"]
    return table(
        [*headings, "seconds", "MB/s of a core"],
        [
            (
                each.way,
                f"{each.nbytes / 1e6:.1f}",
                f"{each.nbytes / each.raw_nbytes:.3f}",
                f"{each.nbytes / peer.nbytes:.3f}",
                f"{each.payload_nbytes / peer.nbytes:.3f}",
                f"{each.delta_nbytes / 1e6:.1f}",
                f"{each.delta_nbytes / peer.delta_nbytes:.3f}",
                f"{each.seconds:.1f}",
                f"{each.raw_nbytes / each.cpu_seconds / 1e6:.0f}" if each.way != FILES else "",
            )
            for each in results.stored
            if each.what == what
        ],
    )


def _load_table(results: Results) -> str:
    """By depth; versions of one depth together, the price beside that of none."""
    rows = []
    for key in dict.fromkeys((each.what, each.policy, each.depth) for each in results.loaded):
        same = [each for each in results.loaded if (each.what, each.policy, each.depth) == key]
        (solo, *_) = (each for each in results.loaded if (each.what, each.policy) == key[:2])
        rate = median(each.rate for each in same)
        core_rate = median(each.core_rate for each in same)
        rows.append((*key, f"{rate:.0f}", f"{rate / solo.rate:.2f}", f"{core_rate:.0f}"))
    return table(["family", "policy", "depth", "MB/s", "of depth 0", "MB/s of a core"], rows)

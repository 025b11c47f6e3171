"""What was measured of autogenerate, as tables of Markdown, and beside it what was aimed at."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from report import Goal, goal_table, table

if TYPE_CHECKING:
    from collections.abc import Iterable

BEGIN, END = "<!-- autogenerate: begin -->", "<!-- autogenerate: end -->"
WAYS = {"from nothing": False, "tables standing": True}
"""Each way through the harness: whether the tables stand already."""


@dataclass(frozen=True)
class Results:
    """All of one run: by way and library how far each case came, and seconds of autogenerate on a large database.

    No seconds if they were not asked for.
    """

    machine: dict[str, str]
    ways: dict[str, dict[str, dict[str, str]]]
    counts: dict[str, int]
    ours_seconds: list[float]
    plain_seconds: list[float]


def goals(results: Results) -> list[Goal]:
    """The goals autogenerate is held to."""
    reached = []
    for way, libraries in results.ways.items():
        ours = libraries["Arc-Halo"]
        passed = _passed(ours)
        reached.append(Goal(f"every case of ours, {way}", f"{passed} of {len(ours)}", passed == len(ours)))
    if not results.ours_seconds:
        return reached
    took = median(results.ours_seconds)
    ratio = took / median(results.plain_seconds)
    counts = ", ".join(f"{count} {kind}" for kind, count in results.counts.items())
    return [
        *reached,
        Goal(f"autogenerate on {counts}: at most 10 s", f"{took:.1f} s", took <= 10),
        Goal("the same, at most 3 times what plain Alembic takes", f"{ratio:.2f}", ratio <= 3),
    ]


def to_markdown(results: Results, reached: Iterable[Goal]) -> str:
    """All tables of a run."""
    parts = [
        table(["on", ""], results.machine.items()),
        *(part for way, libraries in results.ways.items() for part in _way(way, libraries)),
        *(_times(results) if results.ours_seconds else ()),
        "### Goals of autogenerate\n",
        goal_table(reached),
    ]
    return "\n".join(parts)


def _way(way: str, libraries: dict[str, dict[str, str]]) -> list[str]:
    cases = list(libraries["Arc-Halo"])
    rows = [(case, *(_cell(found[case]) for found in libraries.values())) for case in cases]
    total = ("all", *(f"{_passed(found)} of {len(cases)}" for found in libraries.values()))
    return [f"### Kinds of change, {way}\n", table(["change", *libraries], [*rows, total])]


def _passed(found: dict[str, str]) -> int:
    return sum(each == "yes" for each in found.values())


def _times(results: Results) -> list[str]:
    seconds = {"Arc-Halo": results.ours_seconds, "Alembic alone, tables only": results.plain_seconds}
    rows = [(who, f"{median(each):.2f} s") for who, each in seconds.items()]
    return ["### Time\n", table(["an autogenerate that finds nothing", "median"], rows)]


def _cell(came: str) -> str:
    return came if came in ("yes", "-") else f"fails: {came}"

"""What was measured of fusion, as tables of Markdown, and beside it what was aimed at."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from report import Goal, goal_table, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fusion_models import Size

    from arc_halo.fusion.learning import Interval

BEGIN, END = "<!-- fusion: begin -->", "<!-- fusion: end -->"


@dataclass(frozen=True)
class Loss:
    """Nats for each token of the mixed text."""

    who: str
    weights: list[float] | None
    nats: float


@dataclass(frozen=True)
class Comparison:
    """A difference of two ways over the same tokens; greater is better for ours."""

    what: str
    interval: Interval


@dataclass(frozen=True)
class Bookkeeping:
    """Operations whose members answer at once."""

    seconds: list[float]
    per_second: float
    at_once: int
    lost_rows: int


@dataclass(frozen=True)
class Results:
    """All of one run."""

    machine: dict[str, str]
    size: Size
    trained_seconds: float
    losses: list[Loss]
    pools: list[Comparison]
    cascade: dict[str, Any]
    cascades: list[Comparison]
    bookkeeping: Bookkeeping
    logit_seconds: list[float]


def goals(results: Results) -> list[Goal]:
    """What fusion is held to."""
    reached = [Goal(f"{each.what}: above zero", str(each.interval), each.interval.low > 0) for each in results.pools]
    quality, cost = (each.interval for each in results.cascades)
    reached.append(
        Goal(
            "the cascade is better than the best member at no more cost, or cheaper and not worse",
            f"quality {quality}; saved {cost}",
            (quality.low > 0 and cost.mean >= 0) or (cost.low > 0 and quality.mean >= 0),
        )
    )
    books = results.bookkeeping
    took = median(books.seconds) * 1e3
    pooled = median(results.logit_seconds) * 1e3
    reached += [
        Goal("an operation with three instant members: p50 <= 10 ms, committed", f"{took:.1f} ms", took <= 10),
        Goal("a token of 3 x 50,257 logits <= 2 ms", f"{pooled:.2f} ms", pooled <= 2),
        Goal(f"{books.at_once} operations at once: no row lost", str(books.lost_rows), books.lost_rows == 0),
    ]
    return reached


def to_markdown(results: Results, reached: Iterable[Goal]) -> str:
    """All tables of a run."""
    found, books = results.cascade, results.bookkeeping
    parts = [
        f"Three models trained in {results.trained_seconds:.0f} s; figures on text that nothing was fitted to.\n",
        table(["on", ""], results.machine.items()),
        "### Pools of next-token distributions\n",
        table(
            ["who", "weights", "nats per token"],
            [
                (
                    each.who,
                    "" if each.weights is None else ", ".join(f"{w:.2f}" for w in each.weights),
                    f"{each.nats:.3f}",
                )
                for each in results.losses
            ],
        ),
        _comparisons(results.pools),
        "### Cascade\n",
        (
            f"The next token, from the cheapest member that is sure enough; cost in millions of parameters per token. "
            f"{found['best']} alone is right {found['best_quality']:.1%} of the time at {found['best_cost']:.2f}, the "
            f"cascade {found['quality']:.1%} at {found['cost']:.2f}.\n"
        ),
        _comparisons(results.cascades),
        "### Bookkeeping\n",
        table(
            ["operations of three members", ""],
            [
                ("p50, one after another", f"{median(books.seconds) * 1e3:.1f} ms"),
                ("p99", f"{sorted(books.seconds)[int(len(books.seconds) * 0.99)] * 1e3:.1f} ms"),
                (f"{books.at_once} at once", f"{books.per_second:,.0f} a second"),
            ],
        ),
        "### Goals of fusion\n",
        goal_table(reached),
    ]
    return "\n".join(parts)


def _comparisons(found: Iterable[Comparison]) -> str:
    return table(
        ["difference", "mean", "95 % of the bootstrap"],
        [
            (each.what, f"{each.interval.mean:.4f}", f"{each.interval.low:.4f} to {each.interval.high:.4f}")
            for each in found
        ],
    )

"""What was measured of inference, as tables of Markdown, and beside it what was aimed at."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING

from report import Goal, goal_table, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inference_ways import Size

BEGIN, END = "<!-- inference: begin -->", "<!-- inference: end -->"
READ, COMPUTE = "read", "recompute"
_LEAST = {"logged": 8, "unlogged": 10}


@dataclass(frozen=True)
class FirstTokens:
    """Seconds to the first token with a stored prefix, from one of the two tables."""

    table: str
    question_tokens: int
    changes: str
    hit_tokens: int
    stored_seconds: float
    computed_seconds: list[float]
    cold_seconds: float
    warm_seconds: list[float]


@dataclass(frozen=True)
class Restore:
    """Keys and values back into arrays, from one place."""

    place: str
    seconds: list[float]


@dataclass(frozen=True)
class Lookups:
    """Lookups of whole chains in the index."""

    blocks: int
    index_nbytes: int
    seconds: list[float]
    statements: int


@dataclass(frozen=True)
class Analysis:
    """An analysis of many texts that needs activations: without a cache, the first time with one, and again."""

    what: str
    way: str
    nbytes: int
    plain_seconds: float
    first_seconds: float
    again_seconds: list[float]


@dataclass(frozen=True)
class Rounding:
    """What eight bits do to the demo model's next tokens."""

    mean_nats: float
    max_nats: float
    top_agreement: float
    share_of_bytes: float


@dataclass(frozen=True)
class Results:
    """All of one run."""

    machine: dict[str, str]
    size: Size
    prefix_nbytes: int
    first_tokens: list[FirstTokens]
    break_even: list[str]
    restores: list[Restore]
    lookups: Lookups
    analyses: list[Analysis]
    rounding: Rounding


def percentile(seconds: list[float], percent: int) -> float:
    """The value that so many percent do not exceed."""
    return quantiles(seconds, n=100, method="inclusive")[percent - 1]


def goals(results: Results) -> list[Goal]:
    """What inference is held to."""
    return [*_of_first_tokens(results), *_of_lookups(results), *_of_analyses(results)]


def _of_first_tokens(results: Results) -> Iterable[Goal]:
    for each in results.first_tokens:
        least = _LEAST[each.table]
        ratio = median(each.computed_seconds) / median(each.warm_seconds)
        aim = (
            f"{each.table} table, {each.question_tokens} new, changes by {each.changes}: first token at least {least} "
            "times sooner than computing the prompt"
        )
        yield Goal(aim, f"{ratio:.1f}", ratio >= least)


def _of_lookups(results: Results) -> Iterable[Goal]:
    for percent, most in ((50, 2), (99, 10)):
        found = percentile(results.lookups.seconds, percent) * 1e3
        aim = f"lookup of {results.size.lookup_blocks} blocks among {results.lookups.blocks:,}: p{percent} <= {most} ms"
        yield Goal(aim, f"{found:.2f} ms", found <= most)
    yield Goal("a lookup is one round trip", str(results.lookups.statements), results.lookups.statements == 1)


def _of_analyses(results: Results) -> Iterable[Goal]:
    for each in results.analyses:
        ratio = each.plain_seconds / median(each.again_seconds)
        if each.way == READ:
            aim = f"{each.what}: again at least 10 times faster than without a cache"
            yield Goal(aim, f"{ratio:.1f}", ratio >= 10)
        else:
            # Two runs of the same computation differ by a few percent.
            aim = f"{each.what}: again not slower than without a cache (within 5 %)"
            yield Goal(aim, f"{ratio:.2f}", ratio >= 0.95)


def to_markdown(results: Results, reached: Iterable[Goal]) -> str:
    """All tables of a run."""
    size, rounding = results.size, results.rounding
    parts = [
        (
            f"GPT-2 with {size.layers} layers, {size.heads} heads and a width of {size.width}, random weights, "
            f"float32; a prefix of {size.prefix_tokens:,} tokens, {results.prefix_nbytes / 1e6:.1f} MB of keys and "
            "values.\n"
        ),
        table(["on", ""], results.machine.items()),
        "### First token\n",
        (
            "Prompts of the prefix and a question of new tokens, computed whole (median), and with the prefix stored. "
            "Changes of the model are seen by its content (all weights are hashed each time) or by torch's versions; "
            "cold is the first time after a restart of the server:\n"
        ),
        _first_tokens(results),
        *(f"- {each}" for each in results.break_even),
        "\n### Restore\n",
        (
            "The same keys and values back into arrays. Ours are looked up, and compared with their digests; the "
            "others are not:\n"
        ),
        _restores(results),
        "### Lookup\n",
        _lookups(results),
        "### Activations\n",
        f"An analysis of {size.texts} texts of {size.text_tokens} tokens:\n",
        _analyses(results),
        "### Eight bits\n",
        (
            f"Keys and values of the demo model by `int8`, {rounding.share_of_bytes:.0%} of the bytes: "
            f"Kullback-Leibler divergence of the next token {rounding.mean_nats:.1e} nats on average, "
            f"{rounding.max_nats:.1e} at most; the most probable token is the same in {rounding.top_agreement:.1%} of "
            "the places.\n"
        ),
        "### Goals of inference\n",
        goal_table(reached),
    ]
    return "\n".join(parts)


def _first_tokens(results: Results) -> str:
    rows = [
        (
            each.table,
            each.hit_tokens,
            each.question_tokens,
            each.changes,
            f"{each.stored_seconds:.2f}",
            f"{median(each.computed_seconds):.2f}",
            f"{each.cold_seconds:.3f}",
            f"{median(each.warm_seconds):.3f}",
            f"{median(each.computed_seconds) / each.cold_seconds:.1f}",
            f"{median(each.computed_seconds) / median(each.warm_seconds):.1f}",
        )
        for each in results.first_tokens
    ]
    head = [
        "table",
        "tokens found",
        "new",
        "changes by",
        "stored in s",
        "computed s",
        "cold s",
        "warm s",
        "x cold",
        "x warm",
    ]
    return table(head, rows)


def _restores(results: Results) -> str:
    rows = [
        (each.place, f"{median(each.seconds) * 1e3:.0f}", f"{results.prefix_nbytes / median(each.seconds) / 1e6:,.0f}")
        for each in results.restores
    ]
    return table(["from", "ms, median", "MB/s"], rows)


def _lookups(results: Results) -> str:
    found = results.lookups
    milliseconds = [f"{percentile(found.seconds, percent) * 1e3:.2f}" for percent in (50, 90, 99)]
    row = (f"{found.blocks:,}", f"{found.index_nbytes / 1e6:,.0f}", *milliseconds, found.statements)
    return table(["blocks", "MB with indexes", "p50 ms", "p90 ms", "p99 ms", "round trips"], [row])


def _analyses(results: Results) -> str:
    rows = [
        (
            each.what,
            each.way,
            f"{each.nbytes / 1e6:.0f}",
            f"{each.plain_seconds:.2f}",
            f"{each.first_seconds:.2f}",
            f"{median(each.again_seconds):.2f}",
            f"{each.plain_seconds / median(each.again_seconds):.1f}",
        )
        for each in results.analyses
    ]
    return table(["activations", "cheaper", "MB", "without s", "first s", "again s", "x again"], rows)

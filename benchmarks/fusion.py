"""Three language models that answer as one: what that gains over the best of them, and what the bookkeeping costs.

The models are small, and trained here, each on text of its own kind (English, Python, C++); questions come from all
three. What is fitted is fitted to text that no figure is taken from. Needs the extra `transformers`.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from command import command_line, publish, scratch
from fusion_models import (
    CONTEXT,
    SIZES,
    Size,
    cost_of,
    log_probabilities,
    split,
    tokens_of,
    train,
    train_tokenizer,
    windows_of,
)
from fusion_report import BEGIN, END, Bookkeeping, Comparison, Loss, Results, goals, to_markdown
from machine import describe_machine
from server import Server
from sqlalchemy import text

import arc_halo
from arc_halo.fusion.learning import calibrate, fit_cascade, fit_linear_pool, fit_log_pool, paired_bootstrap
from arc_halo.fusion.learning.pool_weights import log_pool_loss
from arc_halo.fusion.learning.thresholds import run_cascade
from arc_halo.fusion.pools import Pool
from arc_halo.fusion.reactor import Reactor
from arc_halo.schema import Reactor as ReactorRow
from arc_halo.schema import ReactorModel

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

_LOGITS = 50_257
_AT_ONCE = 16
_COUNTS = text("""
SELECT (SELECT count(*) FROM arc_halo.fusion_operations), (SELECT count(*) FROM arc_halo.fusion_operation_members)
""")


class Trained:
    """The three models, and what they say of text that they were not trained on."""

    def __init__(self, size: Size) -> None:
        self.size, self.names = size, list(size.shapes)
        parts = {name: split(name, size.text_nbytes) for name in self.names}
        self.tokenizer = train_tokenizer([parts[name]["train"] for name in self.names], size.vocabulary)
        tokens = {
            name: {part: tokens_of(self.tokenizer, each) for part, each in parts[name].items()} for name in self.names
        }
        self.models = [
            train(size.shapes[name], size, tokens[name]["train"], seed) for seed, name in enumerate(self.names)
        ]
        self.costs = np.array([cost_of(model) for model in self.models])
        self.windows = {
            part: np.concatenate([windows_of(tokens[name][part], size.windows, 0) for name in self.names])
            for part in ("fit", "test")
        }

    def scores(self, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log-probabilities [tokens, members, vocabulary], the tokens that came, and the window of each.

        Each kind of text has as many windows, one kind after the other.
        """
        windows = self.windows[part]
        scores = np.stack([log_probabilities(model, windows) for model in self.models], axis=1)
        return scores, windows[:, 1:].reshape(-1), np.repeat(np.arange(len(windows)), CONTEXT - 1)


def pool(trained: Trained) -> tuple[list[Loss], list[Comparison]]:
    """Nats for each token of the mixed text: each member, and pools with equal and with fitted weights."""
    scores, tokens, _ = trained.scores("fit")
    rows = np.arange(len(tokens))
    fitted = fit_log_pool(scores, tokens)
    linear = fit_linear_pool(scores[rows, :, tokens])
    best_to_fit = int(scores[rows, :, tokens].mean(axis=0).argmax())
    scores, tokens, groups = trained.scores("test")
    rows = np.arange(len(tokens))
    single = -scores[rows, :, tokens].astype(np.float64)
    equal = np.full(len(trained.names), 1 / len(trained.names))
    losses = {name: (None, single[:, number]) for number, name in enumerate(trained.names)}
    losses["log pool, equal weights"] = (equal, log_pool_loss(scores, tokens, equal))
    losses["log pool, fitted weights"] = (fitted, log_pool_loss(scores, tokens, fitted))
    losses["linear pool, fitted weights"] = (linear, -np.log(np.exp(-single) @ linear))
    best = min(trained.names, key=lambda name: losses[name][1].mean())
    if best != trained.names[best_to_fit]:
        print(f"the best member to fit to is {trained.names[best_to_fit]}, to test {best}", file=sys.stderr)

    def compared(ours: str, theirs: str) -> Comparison:
        found = paired_bootstrap(
            losses[theirs][1], losses[ours][1], groups=groups, strata=groups // trained.size.windows
        )
        return Comparison(f"nats of {theirs} less those of {ours}", found)

    return (
        [Loss(name, None if w is None else w.tolist(), float(each.mean())) for name, (w, each) in losses.items()],
        [
            compared("log pool, equal weights", best),
            compared("log pool, fitted weights", best),
            compared("log pool, fitted weights", "log pool, equal weights"),
        ],
    )


def cascade(trained: Trained) -> tuple[dict[str, Any], list[Comparison]]:
    """Which token comes next, from the cheapest member that is sure enough, beside the best member alone."""

    def answers(part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores, tokens, groups = trained.scores(part)
        order = np.argsort(trained.costs)
        confidence = np.exp(scores[:, order].max(axis=2))
        right = (scores[:, order].argmax(axis=2) == tokens[:, None]).astype(np.float64)
        return confidence, right, groups

    confidence, right, _ = answers("fit")
    maps = [calibrate(confidence[:, each], right[:, each]) for each in range(right.shape[1])]
    calibrated = np.stack([np.interp(confidence[:, each], *maps[each]) for each in range(len(maps))], axis=1)
    costs = np.sort(trained.costs)
    best = int(right.mean(axis=0).argmax())
    fitted = fit_cascade(calibrated, right, np.tile(costs, (len(right), 1)), most_cost=float(costs[best]))
    confidence, right, groups = answers("test")
    calibrated = np.stack([np.interp(confidence[:, each], *maps[each]) for each in range(len(maps))], axis=1)
    quality, cost = run_cascade(calibrated, right, np.tile(costs, (len(right), 1)), fitted.thresholds)
    names = [trained.names[each] for each in np.argsort(trained.costs)]
    alone = np.full(len(right), costs[best])
    figures = {
        "members": dict(zip(names, costs.tolist(), strict=True)),
        "thresholds": list(fitted.thresholds),
        "best": names[best],
        "best_quality": float(right[:, best].mean()),
        "quality": float(quality.mean()),
        "best_cost": float(costs[best]),
        "cost": float(cost.mean()),
    }
    return figures, [
        Comparison(
            "right answers of the cascade less those of the best member",
            paired_bootstrap(quality, right[:, best], groups=groups, strata=groups // trained.size.windows),
        ),
        Comparison(
            "cost of the best member less that of the cascade",
            paired_bootstrap(alone, cost, groups=groups, strata=groups // trained.size.windows),
        ),
    ]


def keep_books(server: Server, size: Size, resources: ExitStack) -> Bookkeeping:
    """Operations of three members that answer at once: how long each takes, and what sixteen at a time leave behind."""
    database = resources.enter_context(arc_halo.connect(server.create("books"), migrate=False))

    def make(session: Any) -> None:
        row = ReactorRow(name="instant", strategy="parallel", status="active")
        row.members = [ReactorModel(name=each, endpoint=each) for each in "abc"]
        session.add(row)

    database.transaction(make)
    reactor = Reactor(database, "instant", dict.fromkeys("abc", lambda prompt: prompt.upper()))
    alone = []
    for number in range(size.operations + 1):
        began = time.perf_counter()
        reactor.run(f"question {number}")
        alone.append(time.perf_counter() - began)
    with database.session() as session:
        operations, calls = session.execute(_COUNTS).one()
    began = time.perf_counter()
    with ThreadPoolExecutor(_AT_ONCE) as pool_of_threads:
        list(pool_of_threads.map(lambda number: reactor.run(f"at once {number}"), range(size.operations)))
    together = time.perf_counter() - began
    with database.session() as session:
        after = session.execute(_COUNTS).one()
    lost = (operations + size.operations - after[0]) + (calls + 3 * size.operations - after[1])
    return Bookkeeping(alone[1:], size.operations / together, _AT_ONCE, lost)


def pool_logits() -> list[float]:
    """Seconds to make one distribution of three, of as many tokens as GPT-2 has."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, size=(3, _LOGITS)).astype(np.float32)
    pool_of_three, members = Pool("log"), list(logits)
    seconds = []
    for _ in range(101):
        began = time.perf_counter()
        pool_of_three(members, [0.5, 0.3, 0.2])
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def run(size: Size, folder: Path, resources: ExitStack) -> Results:
    """Train, fit and measure everything."""
    server = Server(folder / "home", resources)
    machine = describe_machine(server.connection, folder, ["torch", "transformers"])
    logits = pool_logits()
    books = keep_books(server, size, resources)
    _tell("bookkeeping")
    began = time.perf_counter()
    trained = Trained(size)
    trained_seconds = time.perf_counter() - began
    _tell("three models trained")
    losses, pooled = pool(trained)
    figures, cascaded = cascade(trained)
    return Results(machine, size, trained_seconds, losses, pooled, figures, cascaded, books, logits)


def _tell(what: str) -> None:
    print(f"measured: {what}", file=sys.stderr, flush=True)


def main() -> None:
    """Run, print, and leave nothing behind."""
    options = command_line(__doc__, "to see that it runs").parse_args()
    with scratch() as (folder, resources):
        results = run(SIZES[options.size], folder, resources)
    reached = goals(results)
    publish(options, asdict(results), reached, to_markdown(results, reached), (BEGIN, END))


if __name__ == "__main__":
    main()

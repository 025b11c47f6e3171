"""Keys and values, and activations, read from the database beside computing them, a plain file and Redis.

Time to the first token is that of `generate`, with everything a user waits for: all weights are hashed (or, as a second
way, torch's counters of changes looked at), the prefix is found, read, and compared with its digests. Redis is Debian's
server by a Unix socket, and its client of the extra `benchmark`; without both it is left out. Needs the extra
`transformers`.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import psycopg
import torch
import transformers
from command import command_line, publish, scratch
from inference_report import (
    BEGIN,
    COMPUTE,
    END,
    READ,
    Analysis,
    FirstTokens,
    Lookups,
    Restore,
    Results,
    Rounding,
    goals,
    to_markdown,
)
from inference_ways import Index, PlainFile, Redis, Size, make_model, make_tokens, seconds_to_first_token
from machine import describe_machine
from server import Server
from sqlalchemy import text

import arc_halo
from arc_halo.inference.activations import ActivationCache
from arc_halo.inference.kv import KVCache
from arc_halo.integrations.torch_activations import cached_activations
from arc_halo.integrations.torch_identity import identify, namespace_of
from arc_halo.integrations.transformers_cache import ModelCache
from arc_halo.integrations.transformers_rounding import rounding_divergence

if TYPE_CHECKING:
    from contextlib import ExitStack

    from arc_halo.database import Database
    from arc_halo.inference.namespaces import Namespace
    from arc_halo.integrations.torch_identity.identity import Changes

SIZES = {
    "tiny": Size(
        layers=2, heads=2, width=32, prefix_tokens=100, block_tokens=32, warm_runs=2, computed_runs=2, blocks=640,
        lookup_blocks=16, lookups=20, texts=4, text_tokens=16,
    ),
    "full": Size(
        layers=12, heads=12, width=768, prefix_tokens=1000, block_tokens=256, warm_runs=10, computed_runs=5,
        blocks=1_000_000, lookup_blocks=128, lookups=1000, texts=200, text_tokens=32,
    ),
}  # fmt: skip
_TABLES = ("logged", "unlogged")
_QUESTION_TOKENS = (1, 8)
# Whether all weights are hashed before each use, or torch's counters are trusted.
_WAYS: tuple[tuple[int, Changes], ...] = ((1, "content"), (8, "content"), (1, "versions"), (8, "versions"))
# By turns with plain runs: those of half a second feel every mood of the machine, those of half a minute none.
_AGAIN = 3
_QUICK_AGAIN = 15
_MEASURED = text("""
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY read_ms), percentile_cont(0.5) WITHIN GROUP (ORDER BY recompute_ms)
  FROM (SELECT sum(a.read_ms) AS read_ms, max(a.recompute_ms) AS recompute_ms
          FROM arc_halo.activation_cache AS a
          JOIN arc_halo.cache_namespaces AS n ON n.tenant_id = a.tenant_id AND n.id = a.namespace_id
         WHERE n.digest = :digest
         GROUP BY a.input_digest) AS inputs
""")
DEMO = Path(arc_halo.__file__).parent / "demo_model"


class Comparison:
    """The measurements of one run."""

    def __init__(self, server: Server, database: Database, size: Size, folder: Path, resources: ExitStack) -> None:
        self.server, self.database, self.size = server, database, size
        self.folder, self.resources = folder, resources
        self.model = make_model(size)
        self.computed: dict[int, list[float]] = {}
        self.prefix = make_tokens(size.prefix_tokens, 0)

    def question(self, number: int, token_count: int) -> torch.Tensor:
        """The prefix, and something else each time."""
        return torch.cat([self.prefix, make_tokens(token_count, number + 1)], 1)

    def options(self, table: str) -> dict[str, Any]:
        """Of the cache in one of the two tables."""
        return {"logged": table == "logged", "salt": table.encode(), "block_token_count": self.size.block_tokens}

    def compute(self) -> None:
        """Seconds to the first token of a model without a cache."""
        runs = range(self.size.computed_runs + 1)
        for count in _QUESTION_TOKENS:
            seconds = [seconds_to_first_token(self.model, self.question(number, count)) for number in runs]
            self.computed[count] = seconds[1:]

    def first_tokens(self, table: str) -> list[FirstTokens]:
        """With the prefix stored in one of the two tables, and questions of a few lengths after it."""
        options = self.options(table)
        with ModelCache(self.database, self.model, **options) as cache:
            computed, _ = cache.restore(self.prefix)
            with torch.inference_mode():
                self.model(input_ids=self.prefix, cache=computed)
            began = time.perf_counter()
            cache.store(computed, self.prefix)
            stored = time.perf_counter() - began
        self.server.vacuum()
        found = []
        for count, changes in _WAYS:
            self.database.engine.dispose()
            self.server.restart()
            with ModelCache(self.database, self.model, changes=changes, **options) as cache:
                seconds, hits = [], set()
                for number in range(self.size.warm_runs + 1):
                    asked = self.question(number, count)
                    made = cache.generate(asked, keep="nothing", max_new_tokens=1, pad_token_id=0)
                    seconds.append(made.first_token_seconds)
                    hits.add(made.hit_token_count)
            found.append(
                FirstTokens(table, count, changes, min(hits), stored, self.computed[count], seconds[0], seconds[1:])
            )
        return found

    def break_even(self, table: str) -> str:
        """What reading took, and computing without a cache."""
        with ModelCache(self.database, self.model, **self.options(table)) as cache:
            kv = cache.current()
            kv.note_computed(self.size.prefix_tokens, median(self.computed[min(_QUESTION_TOKENS)]))
            return f"{table}: {kv.break_even}"

    def restores(self) -> list[Restore]:
        """The same keys and values from the database, a file and Redis, by turns."""
        tokens = self.prefix[0].numpy()
        caches = {}
        for table in _TABLES:
            found = ModelCache(self.database, self.model, **self.options(table))
            self.resources.callback(found.close)
            caches[table] = found.current()
        layout = caches["logged"].layout
        layers = caches["logged"].load(caches["logged"].lookup(tokens))
        file, redis = PlainFile(self.folder), None
        file.store(layers)
        if Redis.is_here():
            redis = Redis(self.folder, self.resources)
            redis.store(layers, self.size.block_tokens)
        ways: dict[str, Any] = {
            f"Arc-Halo, {table}": lambda kv=kv: kv.load(kv.lookup(tokens)) for table, kv in caches.items()
        }
        ways[PlainFile.name] = lambda: file.load(layout, len(tokens))
        if redis is not None:
            ways[f"{Redis.name} {redis.version()}"] = lambda: redis.load(layout, len(tokens))
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(self.size.warm_runs + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - began)
        return [Restore(name, each[1:]) for name, each in seconds.items()]

    def look_up(self) -> Lookups:
        """Whole chains in a large index, in an order of chance."""
        url = self.server.create("index")
        database = self.resources.enter_context(arc_halo.connect(url, migrate=False))
        index = Index(database, self.server.connect("index"), self.size)
        index.fill()
        seconds = []
        chains = torch.randperm(index.chains, generator=torch.Generator().manual_seed(0)).tolist()
        with KVCache(database, index.namespace, index.layout) as cache:
            for number in range(self.size.lookups + 1):
                tokens = index.tokens(chains[number % len(chains)])
                began = time.perf_counter()
                prefix = cache.lookup(tokens)
                seconds.append(time.perf_counter() - began)
                if prefix.token_count != len(tokens):
                    raise SystemExit(f"{prefix.token_count} tokens of {len(tokens)} were found")
            statements = _statements_of(lambda: cache.lookup(tokens))
        return Lookups(index.chains * self.size.lookup_blocks, index.nbytes(), seconds[1:], statements)

    def analyse(self) -> list[Analysis]:
        """An analysis of many texts, where reading is cheaper and where computing is."""
        few = [f"transformer.h.{self.size.layers - 1}"]
        small = make_model(_narrow(self.size), seed=1).transformer
        last = [f"h.{len(small.h) - 1}"]
        narrow = "of the last block of a model so narrow that computing takes no time"
        return [
            self._analyse(self.model, few, "of the last block", _AGAIN),
            self._analyse(small, last, narrow, _QUICK_AGAIN),
        ]

    def _analyse(self, model: Any, hook_points: list[str], what: str, again_count: int) -> Analysis:
        inputs = [make_tokens(self.size.text_tokens, 1000 + number) for number in range(self.size.texts)]
        identity = identify(model)
        namespace = namespace_of(identity, kind="activation", layout="as computed")

        def plain() -> float:
            kept: dict[str, torch.Tensor] = {}
            modules = dict(model.named_modules())
            hooks = [
                modules[name].register_forward_hook(
                    lambda _module, _inputs, output, name=name: kept.__setitem__(
                        name, output[0] if isinstance(output, tuple) else output
                    )
                )
                for name in hook_points
            ]
            began = time.perf_counter()
            with torch.inference_mode():
                for input_ids in inputs:
                    model(input_ids=input_ids)
            seconds = time.perf_counter() - began
            for hook in hooks:
                hook.remove()
            return seconds

        with torch.inference_mode():
            model(input_ids=inputs[0])
        with (
            ActivationCache(self.database, namespace) as cache,
            cached_activations(cache, model, hook_points, changes="versions") as cached,
            torch.inference_mode(),
        ):

            def through() -> tuple[float, int]:
                began, nbytes = time.perf_counter(), 0
                for input_ids in inputs:
                    nbytes += sum(each.nbytes for each in cached(input_ids=input_ids).values())
                return time.perf_counter() - began, nbytes

            first, nbytes = through()
            # By turns: a machine has moods.
            again, without = [], []
            for _ in range(again_count):
                again.append(through()[0])
                without.append(plain())
            cache.flush()
        return Analysis(what, self._cheaper(namespace), nbytes, median(without), first, again)

    def _cheaper(self, namespace: Namespace) -> str:
        """What the measurements that are stored say of the middle one of all texts."""
        with self.database.session() as session:
            read, compute = session.execute(_MEASURED, {"digest": namespace.digest}).one()
        return READ if read <= compute else COMPUTE


def _narrow(size: Size) -> Size:
    """A model that computes a lot of activations in little time."""
    return Size(**{**asdict(size), "layers": min(4, size.layers), "heads": 2, "width": min(128, size.width)})


def _statements_of(act: Any) -> int:
    """How many statements a call sends."""
    sent = 0
    execute = psycopg.Cursor.execute

    def counted(self: Any, *rest: Any, **options: Any) -> Any:
        nonlocal sent
        sent += 1
        return execute(self, *rest, **options)

    psycopg.Cursor.execute = counted  # type: ignore[method-assign]
    try:
        act()
    finally:
        psycopg.Cursor.execute = execute  # type: ignore[method-assign]
    return sent


def measure_rounding() -> Rounding:
    """On the demo model, which was trained, and this repository's own text."""
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO)
    page = Path(__file__).parents[1].joinpath("docs", "design.md").read_text(encoding="utf-8")
    tokens = torch.tensor([tokenizer(page[:2000])["input_ids"][:120]])
    found = rounding_divergence(model, tokens, prefix_token_count=64, block_token_count=64)
    dim = model.config.head_dim
    return Rounding(found.mean_nats, found.max_nats, found.top_agreement, (64 * dim + 4 * dim) / (4 * 64 * dim))


def run(size: Size, folder: Path, resources: ExitStack) -> Results:
    """Measure everything on a new server."""
    server = Server(folder / "home", resources)
    machine = describe_machine(server.connection, folder, ["torch", "transformers"])
    machine["torch"] = f"{torch.get_num_threads()} threads"
    database = resources.enter_context(arc_halo.connect(server.create("cache"), migrate=False))
    comparison = Comparison(server, database, size, folder, resources)
    comparison.compute()
    _tell("computing")
    first_tokens = [each for table in _TABLES for each in comparison.first_tokens(table)]
    break_even = [comparison.break_even(table) for table in _TABLES]
    _tell("first tokens")
    restores = comparison.restores()
    nbytes = size.prefix_tokens * ModelCache(database, comparison.model).layout.token_nbytes
    _tell("restores")
    analyses = comparison.analyse()
    _tell("activations")
    lookups = comparison.look_up()
    return Results(machine, size, nbytes, first_tokens, break_even, restores, lookups, analyses, measure_rounding())


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

"""Every input that a fuzzer found worth keeping: a value or a typed error, in bounded memory and time."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from tests.fuzz.minimise import smallest
from tests.fuzz.outcome import CORPUS, NAMES, outcome, target

FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())
MAX_CORPUS_NBYTES = 1_000_000


@pytest.mark.timeout(20)
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_is_parsed_or_refused_in_bounded_memory_and_time(path, tmp_path):
    data = path.read_bytes()
    parser = target(path.parent.name)
    found = outcome(parser, data, tmp_path)
    seconds = min(processor_seconds(parser, data, tmp_path) for _ in range(5))
    assert seconds < (0.01 if isinstance(found, Exception) else 0.1)
    tracemalloc.start()
    try:
        outcome(parser, data, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= (64 << 20) + 12 * len(data)


def processor_seconds(parser, data, folder):
    started = time.process_time()
    outcome(parser, data, folder)
    return time.process_time() - started


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_kept_small_and_reach_something(name, tmp_path):
    parser = target(name)
    given = list(parser.seeds())
    kept = smallest(parser, given, tmp_path)
    assert set(kept) <= set(given)
    assert any(not isinstance(outcome(parser, data, tmp_path), Exception | None) for data in kept)


def test_the_corpus_is_small_and_every_parser_has_one():
    assert {path.parent.name for path in FILES} == set(NAMES)
    assert sum(path.stat().st_size for path in FILES) < MAX_CORPUS_NBYTES

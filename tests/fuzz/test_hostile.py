"""True payloads, changed: codecs written in C and Rust refuse them or read them, and their process lives."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.long import how_many

ROOT = Path(__file__).parents[2]
TOUCH = "from tests.fuzz.guarded import Guarded; view = Guarded(10_000).last(100); ctypes.string_at({}, {})"
ADDRESS = "ctypes.addressof(ctypes.c_char.from_buffer(view))"

payloads = how_many("--payloads", short=10_000)


def run(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    )


def is_survived(name, seed, payloads, tmp_path):
    last = tmp_path / "last"
    done = run("-m", "tests.fuzz.hostile", name, "--inputs", payloads, "--seed", seed, "--last", last)
    held = last.read_bytes()
    assert done.returncode == 0, (done.stderr[-2000:], held[4 : 4 + int.from_bytes(held[:4], "little")].hex())
    assert int(done.stdout.split()[0]) > payloads // 100


@pytest.mark.parametrize("name", ["codec_payload", "delta_payload"])
def test_changed_payloads_are_survived(name, payloads, tmp_path):
    is_survived(name, 1, payloads, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(2, 6))
@pytest.mark.parametrize("name", ["codec_payload", "delta_payload"])
def test_many_changed_payloads_are_survived(name, seed, payloads, tmp_path):
    is_survived(name, seed, payloads, tmp_path)


@pytest.mark.parametrize(("nbytes", "returncode"), [(100, {0}), (101, {-signal.SIGSEGV, -signal.SIGBUS})])
def test_one_byte_behind_a_guarded_buffer_ends_the_process(nbytes, returncode):
    assert run("-c", f"import ctypes; {TOUCH.format(ADDRESS, nbytes)}").returncode in returncode

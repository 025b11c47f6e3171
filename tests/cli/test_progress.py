"""Progress bars."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

import arc_halo
from arc_halo.cli import progress
from arc_halo.cli.progress import progress_bars, progress_count, progress_rows

PACKAGE = Path(arc_halo.__file__).parent
PHASES = {
    phase for path in PACKAGE.rglob("*.py") for phase in re.findall(r'Meter\(\w+, "(\w+)"', path.read_text("utf-8"))
}


@pytest.mark.parametrize("phase", sorted(PHASES))
def test_every_phase_has_a_word(monkeypatch, phase):
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(progress, "console", lambda **_: screen)
    with progress_bars(silent=False) as report:
        report(phase, 1, 2)
    assert re.search(rf"\b{phase}\b", screen.file.getvalue()) is None


def test_nothing_is_drawn_where_nobody_looks(capsys):
    with progress_bars(silent=False) as report:
        assert report is None
    assert tuple(capsys.readouterr()) == ("", "")


@pytest.mark.parametrize("silent", [True, False])
def test_a_terminal_sees_phases_and_speed(monkeypatch, silent):
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(progress, "console", lambda **_: screen)
    with progress_bars(silent=silent) as report:
        if report is not None:
            report("store", 0, 2_000_000)
            report("store", 2_000_000, 2_000_000)
    drawn = screen.file.getvalue()
    assert (("storing" in drawn) and ("2.0/2.0 MB" in drawn)) is not silent


def test_a_terminal_sees_a_count(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(progress, "console", lambda **_: screen)
    with progress_count("sweeping", silent=False) as report:
        report(1234)
    assert "sweeping" in screen.file.getvalue()


def test_nobody_sees_a_count_where_nobody_looks(capsys):
    with progress_count("sweeping", silent=False) as report:
        assert report is None
    assert tuple(capsys.readouterr()) == ("", "")


@pytest.mark.parametrize("silent", [True, False])
def test_a_terminal_sees_rows(monkeypatch, silent):
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(progress, "console", lambda **_: screen)
    with progress_rows("filling", silent=silent) as report:
        if report is not None:
            report(2000, 3000)
    assert ("2000/3000" in screen.file.getvalue()) is not silent

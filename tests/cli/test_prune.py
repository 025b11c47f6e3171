"""``arc-halo prune``."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.cli.prune import period

if TYPE_CHECKING:
    from tests.cli.command_line import CommandLine


@given(st.integers(0, 10**6), st.sampled_from([("s", 1), ("m", 60), ("h", 3600), ("d", 86400)]))
def test_periods_are_numbers_with_a_unit(number, unit):
    assert period(f"{number}{unit[0]}") == dt.timedelta(seconds=number * unit[1])


def test_nothing_needs_no_unit():
    assert period("0") == dt.timedelta(0)


@pytest.mark.parametrize("text", ["", "5", "-1h", "1w", "h", "1.5h", "1 h", "9" * 30 + "d", "\u0661h"])
def test_other_periods_are_refused(text):
    with pytest.raises(typer.BadParameter, match="no period"):
        period(text)


def test_a_wrong_period_is_a_wrong_command_line(arc_halo: CommandLine):
    arc_halo.run("prune", "--grace", "soon", code=2)


def test_what_a_deleted_model_leaves_is_freed(stored: CommandLine):
    own = stored.json("model", "delete", "m", "--yes")["own_nbytes"]
    assert stored.json("prune")["chunks"] == 0  # younger than the grace period
    counted = stored.json("prune", "--grace", "0", "--dry-run")
    assert (counted["stored_nbytes"], counted["dry_run"]) == (own, True)
    assert stored.says("prune", "--grace", "0").startswith(f"freed {counted['tensors']} tensors")
    assert stored.json("prune", "--grace", "0")["tensors"] == 0


def test_what_is_used_stays(stored: CommandLine):
    assert stored.says("prune", "--grace", "0", "--dry-run") == "would free 0 tensors, 0 chunks, 0 bytes\n"
    stored.says("model", "verify", "m")

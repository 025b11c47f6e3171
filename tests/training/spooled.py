"""Points and their keys as a recorder has them."""

from __future__ import annotations

import datetime as dt
import uuid

import numpy as np
from hypothesis import strategies as st

from arc_halo.training.keys import SeriesKey
from arc_halo.training.points import POINT
from arc_halo.training.processes import ProcessIdentity
from arc_halo.training.spool import SpoolHeader

PROCESS = ProcessIdentity("host", "boot/1", 7, dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC))
HEADER = SpoolHeader(uuid.UUID(int=5), "0123456789abcdef", PROCESS, {"loss": "minimize"})
STEPS = st.integers(0, 2**63 - 1)
KEYS = st.builds(SeriesKey, st.text(min_size=1, max_size=9), st.sampled_from(["train", "test"]), st.just("{}"))


def points(*steps: int, series: int = 0, value: float = 1.5) -> np.ndarray:
    return np.array([(series, step, np.nan, value, 1_000_000 + step) for step in steps], POINT)


@st.composite
def batches(draw):
    """What is appended one after another: all keys so far, and points of some of them."""
    keys, made = [], []
    for _ in range(draw(st.integers(0, 5))):
        keys += draw(st.lists(KEYS, min_size=0 if keys else 1, max_size=3))
        rows = st.tuples(st.integers(0, len(keys) - 1), STEPS, st.floats(), st.floats(), st.integers(0, 2**62))
        made.append((keys[:], np.array(draw(st.lists(rows, max_size=8)), POINT)))
    return made

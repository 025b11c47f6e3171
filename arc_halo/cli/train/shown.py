"""Numbers, times and curves of runs as people read them on a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arc_halo.cli.output import shown

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping

    from arc_halo.training.runs import RunSummary

SILENT_SECONDS: Final = 60.0
"""A running attempt that was not heard of for so long may be dead: the next one takes it over."""
SPARKLINE_WIDTH: Final = 32
_LEVELS: Final = "▁▂▃▄▅▆▇█"
_MISSING: Final = "·"
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def number(value: float | None) -> str:
    """Six digits at most; nothing for None."""
    return "" if value is None else f"{value:.6g}"


def at_step(value: float | None, step: int | None) -> str:
    """``0.25 @ 1,200``."""
    return "" if value is None or step is None else f"{value:.6g} @ {step:,}"


def duration(seconds: float) -> str:
    """``42 s``, ``5 min``, ``3.2 h``, ``4.5 d``."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:.1f} h" if seconds < 2 * _DAY else f"{seconds / _DAY:.1f} d"


def moment(time: dt.datetime | None) -> str:
    """In the time zone of the terminal, to the second."""
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def progress(run: RunSummary) -> str:
    """``1,200 of 5,000``."""
    return f"{run.current_step:,}" + ("" if run.total_steps is None else f" of {run.total_steps:,}")


def state(run: RunSummary) -> str:
    """The status, and for how long a running attempt was not heard of."""
    age = run.heartbeat_age_seconds
    is_silent = run.attempt_status == "running" and age is not None and age > SILENT_SECONDS
    return f"{run.status}, silent for {duration(age)}" if is_silent and age is not None else run.status


def sparkline(buckets: np.ndarray, width: int = SPARKLINE_WIDTH) -> str:
    """The last values of buckets as a line of blocks, from their smallest to their largest; a dot where one is NaN."""
    values = buckets["last_value"][-width:]
    finite = values[np.isfinite(values)]
    if not len(finite):
        return _MISSING * len(values)
    low, high = float(finite.min()), float(finite.max())
    return "".join(_level(float(each), low, high) for each in values)


def _level(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return _MISSING
    if math.isinf(value):
        return _LEVELS[-1 if value > 0 else 0]
    # Halves, so that their difference does not overflow.
    share = (value / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.0
    return _LEVELS[min(int(share * len(_LEVELS)), len(_LEVELS) - 1)]


def settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The leaves of a config by dotted keys, in the order of the alphabet."""
    from arc_halo.training.comparing import leaves  # noqa: PLC0415  heavy, as commands import it

    return sorted((key, shown(str(value))) for key, value in leaves(config))


def run_fields(run: RunSummary) -> dict[str, Any]:
    """A run as JSON has it, its metrics by name."""
    fields = {name: getattr(run, name) for name in run.__dataclass_fields__ if name != "metrics"}
    return {"run": run.run, **fields, "metrics": {name: metric_fields(each) for name, each in run.metrics.items()}}


def metric_fields(summary: Any) -> dict[str, Any]:
    """A metric as JSON has it; values that are no numbers are null there."""
    fields = {name: getattr(summary, name) for name in summary.__dataclass_fields__ if name != "metric"}
    return {**fields, "best_value": summary.best_value, "best_at_step": summary.best_at_step}

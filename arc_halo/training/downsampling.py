"""Curves of many points made small enough to draw: buckets that keep every spike, and LTTB that keeps the shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from arc_halo.errors import MetricError

if TYPE_CHECKING:
    from collections.abc import Mapping

BUCKET: Final = np.dtype(
    [
        ("first_step", np.int64),
        ("last_step", np.int64),
        ("point_count", np.int64),
        ("min_value", np.float64),
        ("min_at_step", np.int64),
        ("max_value", np.float64),
        ("max_at_step", np.int64),
        ("last_value", np.float64),
    ]
)
"""What a chart draws of a stretch of a curve: a block of points, or a bucket made of several blocks.

Of values that are all NaN minimum and maximum are NaN, at the first step.
"""
_SCALE_BELOW: Final = 2.0**-500


def as_blocks(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Points as `BUCKET` rows of one point each, shape (n,)."""
    blocks = np.empty(len(steps), BUCKET)
    blocks["point_count"] = 1
    for step in ("first_step", "last_step", "min_at_step", "max_at_step"):
        blocks[step] = steps
    for value in ("min_value", "max_value", "last_value"):
        blocks[value] = values
    return blocks


def bucket_points(steps: np.ndarray, values: np.ndarray, buckets: int = 1000) -> np.ndarray:
    """Points in at most ``buckets`` stretches of equally many steps, each with its exact minimum, maximum and last.

    Parameters
    ----------
    steps, values
        Shape (n,); steps ascend. NaN counts in no minimum and no maximum, infinities do.

    Returns
    -------
    ndarray
        Of `BUCKET`; stretches without points are left out.

    Raises
    ------
    MetricError
        Steps do not ascend, or there is to be no bucket.
    """
    steps, values = _checked(steps, values)
    _check_count(buckets)
    if len(steps) <= buckets:
        return as_blocks(steps, values)
    columns = {name: values if name.endswith("value") else steps for name in BUCKET.names or ()}
    return _merged(columns | {"point_count": np.ones(len(steps), np.int64)}, buckets)


def merge_blocks(blocks: np.ndarray, buckets: int = 1000) -> np.ndarray:
    """Blocks in the order of their steps as at most ``buckets`` of them; one that begins in a bucket ends there, too.

    Raises
    ------
    MetricError
        There is to be no bucket.
    """
    _check_count(buckets)
    if len(blocks) <= buckets:
        return blocks.copy()
    return _merged({name: np.ascontiguousarray(blocks[name]) for name in BUCKET.names or ()}, buckets)


def _check_count(buckets: int) -> None:
    if buckets < 1:
        raise MetricError(f"{buckets} buckets hold no curve; ask for one or more")


def _merged(columns: Mapping[str, np.ndarray], buckets: int) -> np.ndarray:
    """By columns: rows of a structured array are wider than what each pass needs."""
    starts = _starts(columns["first_step"], int(columns["last_step"][-1]), buckets)
    count = len(columns["first_step"])
    lengths = np.diff(starts, append=count)
    last = starts + lengths - 1
    merged = np.empty(len(starts), BUCKET)
    merged["first_step"] = columns["first_step"][starts]
    merged["last_step"] = columns["last_step"][last]
    merged["last_value"] = columns["last_value"][last]
    merged["point_count"] = np.add.reduceat(columns["point_count"], starts)
    for name, extreme in (("min", np.fmin), ("max", np.fmax)):
        values = columns[f"{name}_value"]
        merged[f"{name}_value"] = found = extreme.reduceat(values, starts)
        at = _first_positions(values == np.repeat(found, lengths), starts)
        merged[f"{name}_at_step"] = columns[f"{name}_at_step"][at]
    return merged


def _starts(first_steps: np.ndarray, last_step: int, buckets: int) -> np.ndarray:
    """Where the first block of each bucket stands."""
    first = int(first_steps[0])
    index = ((first_steps - first) * (buckets / (last_step - first + 1))).astype(np.int64)
    return np.flatnonzero(np.diff(np.minimum(index, buckets - 1), prepend=-1))


def _first_positions(matches: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Of each stretch the first that matches, or else its first: NaN matches nothing."""
    positions = np.append(np.flatnonzero(matches), len(matches))
    first = positions[np.searchsorted(positions, starts)]
    return np.where(first < np.append(starts[1:], len(matches)), first, starts)


def lttb(steps: np.ndarray, values: np.ndarray, points: int = 1000) -> np.ndarray:
    """Which points to draw so that the curve looks as it did: Largest Triangle Three Buckets.

    Sveinn Steinarsson, "Downsampling Time Series for Visual Representation", University of Iceland, 2013, 4.2.
    Of each bucket it takes the point that spans the largest triangle with the one taken before and the mean of the
    next bucket. It chooses among finite values; `bucket_points` keeps what this may miss.

    Parameters
    ----------
    steps, values
        Shape (n,); steps ascend.
    points
        How many to take, 2 or more.

    Returns
    -------
    ndarray
        Ascending positions, of at most ``points``: the first and the last finite value are among them.

    Raises
    ------
    MetricError
        Steps do not ascend, or fewer than two points are asked for.

    Examples
    --------
    >>> steps = np.arange(10_000)
    >>> chosen = lttb(steps, np.sin(steps / 500), 100)
    >>> len(chosen), chosen[0], chosen[-1]
    (100, np.int64(0), np.int64(9999))
    """
    steps, values = _checked(steps, values)
    if points < 2:  # noqa: PLR2004  the ends
        raise MetricError(f"{points} points make no curve; ask for two or more")
    finite = np.flatnonzero(np.isfinite(values))
    if len(finite) <= points:
        return finite
    if points == 2:  # noqa: PLR2004  as above
        return finite[[0, -1]]
    x = (steps[finite] - steps[finite[0]]).astype(np.float64)
    y = values[finite]
    # Areas are compared with one another only, so that neither axis may overflow.
    chosen: np.ndarray = finite[_largest_triangles(x / x[-1], y / max(np.abs(y).max(), _SCALE_BELOW), points)]
    return chosen


def _largest_triangles(x: np.ndarray, y: np.ndarray, points: int) -> np.ndarray:
    inner = np.linspace(1, len(x) - 1, points - 1).astype(np.int64)  # edges; the first and the last point stand alone
    counts = np.diff(inner, append=len(x))
    mean_x, mean_y = (np.add.reduceat(each, inner) / counts for each in (x, y))
    chosen = np.zeros(points, np.int64)
    chosen[-1] = len(x) - 1
    for bucket in range(points - 2):
        before = chosen[bucket]
        part = slice(inner[bucket], inner[bucket + 1])
        area = (x[before] - mean_x[bucket + 1]) * (y[part] - y[before])
        area -= (x[before] - x[part]) * (mean_y[bucket + 1] - y[before])
        chosen[bucket + 1] = inner[bucket] + np.abs(area).argmax()
    return chosen


def _checked(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.asarray(steps, np.int64), np.asarray(values, np.float64)
    if steps.ndim != 1 or steps.shape != values.shape:
        raise MetricError(f"steps of shape {steps.shape} and values of {values.shape} are no curve; give one of each")
    if (steps[1:] <= steps[:-1]).any():
        raise MetricError("steps must ascend, each once; sort them and keep the last of equal ones")
    return steps, values


def resample(steps: np.ndarray, values: np.ndarray, length: int) -> np.ndarray:
    """A curve at ``length`` places at equal distances from its first step to its last, as the means around them.

    What is not finite is left out; places without points are interpolated between those that have some.

    Returns
    -------
    ndarray
        float64, shape (length,); empty if no value is finite.

    Raises
    ------
    MetricError
        Steps do not ascend, or there are to be no places.
    """
    steps, values = _checked(steps, values)
    _check_count(length)
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if not len(steps):
        return np.empty(0)
    starts = _starts(steps, int(steps[-1]), length)
    counts = np.diff(starts, append=len(steps))
    offsets = (steps - steps[0]).astype(np.float64)
    scale = max(float(np.abs(values).max()), _SCALE_BELOW)
    means = np.add.reduceat(values / scale, starts) / counts
    centres = np.add.reduceat(offsets, starts) / counts
    return np.interp(np.linspace(0.0, offsets[-1], length), centres, means) * scale

"""Whatever is written, sealed and deleted in whatever order, rows and summaries are those of a plain model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, text, update
from sqlalchemy.dialects.postgresql import insert

from arc_halo.errors import ConstraintViolation
from arc_halo.schema import MetricSegment, MetricSeries, MetricSummary, TrainingMetric, TrainingPoint
from arc_halo.training import points as points_module
from arc_halo.training.points import POINT, write_points
from arc_halo.training.sealing import seal_points, unseal_points
from tests.schema.rows import add_attempt, add_model, add_run, add_series

SERIES = 2
# Few values, so that many are equal; several segments' worth of steps.
VALUES = np.array([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 2.0, 2.5, -7.0, 1e300])
places = st.integers(0, SERIES - 1)
steps = st.integers(0, 20) | st.integers(0, 12_000) | st.just(2**63 - 1)


@st.composite
def stretches(draw):
    """Steps of one series: a few of any order, some twice, or a long regular stretch."""
    if draw(st.integers(0, 3)):
        return draw(st.lists(st.integers(0, 20) if draw(st.booleans()) else steps, max_size=12))
    return list(range(draw(st.integers(0, 3000)), draw(st.integers(0, 9000)), draw(st.integers(1, 3))))


@st.composite
def ranges(draw):
    first = draw(steps)
    return first, min(first + draw(st.sampled_from([0, 0, 1, 3, 5000])), 2**63 - 1)


seeds = st.integers(0, 1000)
operations = st.one_of(
    st.tuples(st.just("write"), places, stretches(), seeds, st.sampled_from([0, 512])),
    st.tuples(st.just("write_both"), stretches(), stretches(), seeds, st.sampled_from([0, 512])),
    st.tuples(st.just("upsert"), places, st.lists(steps, max_size=12), seeds),
    st.tuples(st.just("update"), places, ranges(), seeds),
    st.tuples(st.just("move"), places, steps, steps),
    st.tuples(st.just("delete"), places, ranges()),
    st.tuples(st.just("replace"), places, ranges(), seeds),
    st.tuples(st.just("seal"), places, steps),
    st.tuples(st.just("unseal"), places, steps),
    st.tuples(st.just("seal_points"), st.integers(0, 20)),
    st.tuples(st.just("unseal_points")),
)


class Model:
    """What the database should hold: values by step, and how far each series is sealed."""

    def __init__(self, session, run, series):
        self.session, self.run, self.series = session, run, series
        self.values = [{} for _ in series]
        self.sealed = [-1 for _ in series]

    def write(self, place, written, seed, call_points):
        self._write([(place, written)], seed, call_points)

    def write_both(self, first, second, seed, call_points):
        self._write([(0, first), (1, second)], seed, call_points)

    def _write(self, stretches, seed, call_points):
        points = np.zeros(sum(len(written) for _, written in stretches), POINT)
        points["series_id"] = np.concatenate([np.full(len(w), self.series[place].id) for place, w in stretches])
        points["step"] = np.concatenate([np.array(w, np.int64) for _, w in stretches])
        points["value"] = np.random.default_rng(seed).choice(VALUES, len(points))
        points["epoch"] = np.where(points["step"] % 3, math.nan, points["step"] / 8)
        points = np.random.default_rng(seed).permutation(points)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(points_module, "_CALL_POINTS", call_points)
            write_points(self.session, points)
        ids = [each.id for each in self.series]
        for point in points.tolist():
            self.values[ids.index(point[0])][point[1]] = point[3]

    def upsert(self, place, written, seed):
        values = dict(zip(written, np.random.default_rng(seed).choice(VALUES, len(written)).tolist(), strict=True))
        rows = [{"series_id": self.series[place].id, "step": step, "value": value} for step, value in values.items()]
        if not rows:
            return
        statement = insert(TrainingMetric).values(rows)
        statement = statement.on_conflict_do_update(
            index_elements=["series_id", "step"], set_={"value": statement.excluded.value}
        )
        if self._runs(statement, min(values) > self.sealed[place]):
            self.values[place] |= values

    def update(self, place, chosen, seed):
        chosen = self._unsealed(place, *chosen)
        if not chosen:
            return
        values = dict(zip(chosen, np.random.default_rng(seed).choice(VALUES, len(chosen)).tolist(), strict=True))
        self.session.execute(
            text(
                "UPDATE arc_halo.training_metrics AS t SET value = n.value FROM unnest(CAST(:steps AS bigint[]),"
                " CAST(:values AS float8[])) AS n (step, value) WHERE t.series_id = :id AND t.step = n.step"
            ),
            {"steps": list(values), "values": list(values.values()), "id": self.series[place].id},
        )
        self.values[place] |= values

    def move(self, place, before, after):
        """To another step, where the series may be another one, too."""
        other = (place + after) % SERIES
        if before not in self._unsealed(place, before, before) or after in self.values[other]:
            return
        moved = (
            update(TrainingMetric)
            .where(TrainingMetric.series_id == self.series[place].id, TrainingMetric.step == before)
            .values(series_id=self.series[other].id, step=after)
        )
        if self._runs(moved, after > self.sealed[other]):
            self.values[other][after] = self.values[place].pop(before)

    def delete(self, place, chosen):
        self.session.execute(
            delete(TrainingMetric).where(
                TrainingMetric.series_id == self.series[place].id, TrainingMetric.step.between(*chosen)
            )
        )
        for step in self._unsealed(place, *chosen):
            del self.values[place][step]

    def replace(self, place, chosen, seed):
        """Delete and insert by one statement, whose triggers see what both did."""
        new = max(self.values[place], default=0) + 1
        value = np.random.default_rng(seed).choice(VALUES)
        if new > 2**63 - 1:
            return
        self.session.execute(
            text(
                "WITH gone AS (DELETE FROM arc_halo.training_metrics WHERE series_id = :id"
                " AND step BETWEEN :first AND :last)"
                " INSERT INTO arc_halo.training_metrics (series_id, step, value) VALUES (:id, :new, :value)"
            ),
            {"id": self.series[place].id, "first": chosen[0], "last": chosen[1], "new": new, "value": float(value)},
        )
        for step in self._unsealed(place, *chosen):
            del self.values[place][step]
        self.values[place][new] = float(value)

    def seal(self, place, through):
        self._call("seal_series", place, through)
        self._note_seal(place, through)

    def _note_seal(self, place, through):
        if packed := [step for step in self.values[place] if self.sealed[place] < step <= through]:
            self.sealed[place] = max(packed)

    def unseal(self, place, from_step):
        self._call("unseal_series", place, from_step)
        edges = select(MetricSegment.last_step).where(MetricSegment.series_id == self.series[place].id)
        self.sealed[place] = max(self.session.scalars(edges), default=-1)
        assert self.sealed[place] < from_step

    def seal_points(self, keep_points):
        seal_points(self.session, self.run, keep_points=keep_points)
        for place, values in enumerate(self.values):
            unsealed = sorted(step for step in values if step > self.sealed[place])
            if len(unsealed) > keep_points:
                self._note_seal(place, unsealed[-1 - keep_points])

    def unseal_points(self):
        unseal_points(self.session, self.run)
        self.sealed = [-1 for _ in self.series]

    def _unsealed(self, place, first, last):
        return [step for step in self.values[place] if first <= step <= last and step > self.sealed[place]]

    def _call(self, function, place, step):
        self.session.execute(
            text(f"SELECT arc_halo.{function}(:id, :step)"), {"id": self.series[place].id, "step": step}
        )

    def _runs(self, statement, is_allowed):
        """Whether it does what it should: what is sealed cannot be written so."""
        if is_allowed:
            self.session.execute(statement)
            return True
        with pytest.raises(ConstraintViolation) as caught, self.session.begin_nested():
            self.session.execute(statement)
        assert caught.value.constraint == "training_metrics_sealed"
        return False

    def check(self):
        self.session.expire_all()
        for place, series in enumerate(self.series):
            rows = self.session.execute(
                select(TrainingPoint.step, TrainingPoint.value, TrainingPoint.is_sealed)
                .where(TrainingPoint.series_id == series.id)
                .order_by(TrainingPoint.step)
            ).all()
            expected = sorted(self.values[place].items())
            assert [row.step for row in rows] == [step for step, _ in expected]
            assert bits(row.value for row in rows) == bits(value for _, value in expected)
            assert all(row.is_sealed == (row.step <= self.sealed[place]) for row in rows)
            assert (series.sealed_through_step if series.sealed_through_step is not None else -1) == self.sealed[place]
            check_summary(self.session.get(MetricSummary, series.id), self.values[place])
            for segment in series.segments:
                check_segment(segment)


def bits(values):
    return np.array(list(values), np.float64).tobytes()


def landmarks(values):
    """Of a mapping from steps to values: first and last step, last value, minimum and maximum with their places."""
    known = {step: value for step, value in values.items() if not math.isnan(value)}
    low = min(known, key=lambda step: (known[step], step), default=None)
    high = min(known, key=lambda step: (-known[step], step), default=None)
    return [len(values), len(values) - len(known), min(values, default=None), max(values, default=None)], [
        known.get(low), low, known.get(high), high,
    ]  # fmt: skip


def check_summary(summary, values):
    if summary is None:
        assert not values
        return
    counts, extremes = landmarks(values)
    assert [summary.point_count, summary.nan_count, summary.first_step, summary.last_step] == counts
    assert [summary.min_value, summary.min_at_step, summary.max_value, summary.max_at_step] == extremes
    if values:
        assert bits([summary.last_value]) == bits([values[max(values)]])
        assert summary.last_recorded_at is not None
    else:
        assert summary.last_value is summary.last_recorded_at is None


def check_segment(segment):
    values = dict(zip(segment.steps, segment.point_values, strict=True))
    assert segment.steps == sorted(values)
    counts, extremes = landmarks(values)
    assert [segment.point_count, segment.nan_count, segment.first_step, segment.last_step] == counts
    assert [segment.min_value, segment.min_at_step, segment.max_value, segment.max_at_step] == extremes
    for number, steps_and_values in enumerate(zip(*segment.block_steps, *segment.block_values, strict=True)):
        block = dict(list(values.items())[64 * number : 64 * number + 64])
        (_, _, first, last), (low, low_at, high, high_at) = landmarks(block)
        assert list(steps_and_values[:4]) == [first, last, *(first if at is None else at for at in (low_at, high_at))]
        expected = [block[last], *(math.nan if each is None else each for each in (low, high))]
        assert np.array_equal(steps_and_values[4:], expected, equal_nan=True)
    assert len(segment.block_steps[0]) == math.ceil(len(values) / 64)


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=100)
@given(done=st.lists(operations, min_size=1, max_size=15))
def test_rows_and_summaries_are_those_of_a_plain_model(session, done):
    with session.begin_nested() as example:
        run = add_run(session, add_model(session))
        attempt = add_attempt(session, run)
        model = Model(session, run, [add_series(session, attempt, f"m{number}") for number in range(SERIES)])
        for name, *arguments in done:
            getattr(model, name)(*arguments)
            model.check()
        session.delete(run)
        session.flush()
        for table in (MetricSeries, MetricSummary, MetricSegment, TrainingMetric):
            assert session.scalars(select(table)).all() == []
        example.rollback()

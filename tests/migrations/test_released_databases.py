"""The database of every release comes to head with all its rows, and gives its model back byte for byte."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
from sqlalchemy import func, select

from arc_halo import export_model, find_model, find_similar_tokens
from arc_halo.database.migrate import check, current, heads, upgrade
from arc_halo.inference.activations import get_activations, input_digest
from arc_halo.inference.attention import load_attention
from arc_halo.inference.kv import find_prefix, load_prefix
from arc_halo.inference.responses import find_response
from arc_halo.registry import check_model
from arc_halo.schema import (
    Base,
    InferenceSession,
    MetricSegment,
    MetricSeries,
    Model,
    ModelCheckpoint,
    TrainingAttempt,
    TrainingPoint,
    TrainingSession,
)
from arc_halo.schema.training import BLOCK_POINTS
from arc_halo.store import Wanted, get_arrays
from arc_halo.training import (
    chart,
    find_run,
    find_similar_runs,
    history,
    load_checkpoint,
    seal_points,
    summarize_runs,
    training_run,
    verify_reproducibility,
)
from arc_halo.training.sealing import unseal_points
from tests.golden.databases import inference as serving
from tests.golden.databases.digests import of_curve, of_state, of_value
from tests.inference.kv import LAYOUT, make_layers
from tests.migrations.released import SERVES, that_serve, that_train


def test_it_stands_where_it_was_left(released_url, expected):
    assert current(released_url) == (expected["revision"],)


def test_it_comes_to_head(released_url):
    upgrade(released_url)
    assert current(released_url) == heads()
    check(released_url)


# That revision empties them: what was cached before it has no namespace that could be relied on.
CACHES = ("cache_namespaces", "kv_cache", "kv_cache_payloads", "kv_cache_statistics", "activation_cache")


def test_no_row_is_lost_but_what_was_cached(upgraded, expected):
    tables = Base.metadata.tables
    rows = {name: upgraded.scalar(select(func.count()).select_from(tables[name])) for name in expected["rows"]}
    emptied = dict.fromkeys((f"arc_halo.{name}" for name in CACHES), 0) if expected["revision"] < SERVES else {}
    assert rows == expected["rows"] | emptied


def test_every_class_reads_its_rows(upgraded):
    for mapper in Base.registry.mappers:
        assert len(upgraded.scalars(select(mapper.class_)).all()) == upgraded.scalar(
            select(func.count()).select_from(mapper.local_table)
        )


def test_the_model_is_sound_and_comes_out_as_it_went_in(upgraded, expected, tmp_path):
    model = find_model(upgraded, "released@production")
    assert list(check_model(upgraded, model)) == []
    exported = export_model(upgraded, model, tmp_path)
    assert {path.name: sha256(path.read_bytes()).hexdigest() for path in exported} == expected["files"]


def test_every_model_is_sound_and_is_what_it_was(upgraded, expected):
    models = {f"{each.name}@{each.version}": each for each in upgraded.scalars(select(Model))}
    assert [fault for model in models.values() for fault in check_model(upgraded, model)] == []
    weights = {name: model.weights_digest.hex() for name, model in models.items()}
    assert expected.get("weights", weights) == weights  # 0.1.0 did not write them down


def test_its_tokens_are_found(upgraded):
    assert len(find_similar_tokens(upgraded, "released", "king", k=3)) == 3


def runs(session):
    return session.scalars(select(TrainingSession)).all()


def attempt_of(session, run, number):
    """An attempt, of the run of a reference, by its number."""
    found = find_run(session, run)
    return next(each for each in found.attempts if each.attempt_number == number)


def curves(session):
    """Every curve of every line, by run, number of the attempt, and metric."""
    lines = session.execute(
        select(TrainingSession, TrainingAttempt.attempt_number).join(TrainingSession.attempts)
    ).all()
    return {
        (run.name, number, metric): history(session, run, metric, attempt=number)
        for run, number in lines
        for metric in summarize_runs(session, [run.id])[run.id]
    }


def rows_of(session, series):
    """The points of a series, sealed or not, with NaN for no epoch."""
    columns = (TrainingPoint.step, TrainingPoint.epoch, TrainingPoint.value, TrainingPoint.recorded_at)
    statement = select(*columns).where(TrainingPoint.series_id == series.id).order_by(TrainingPoint.step)
    return [tuple(map(repr, row)) for row in session.execute(statement)]


def spelt(numbers):
    """NaN equals itself so, and zero is not its negative."""
    return [None if each is None else repr(float(each)) for each in numbers]


def extremes(values):
    """First places and values of minimum and maximum; None where every value is NaN."""
    if np.isnan(values).all():
        return None, None
    return int(np.nanargmin(values)), int(np.nanargmax(values))


def reached(steps, values):
    """What a summary says of points."""
    low, high = extremes(values)
    best = [None] * 4 if low is None else [values[low], steps[low], values[high], steps[high]]
    return spelt([len(steps), np.isnan(values).sum(), steps[0], steps[-1], values[-1], *best])


def told(summary):
    names = ("point_count", "nan_count", "first_step", "last_step", "last_value")
    bests = ("min_value", "min_at_step", "max_value", "max_at_step")
    return spelt(getattr(summary, name) for name in (*names, *bests))


def test_the_line_of_the_run_made_by_hand_has_each_step_once(upgraded):
    line = history(upgraded, "released/run", "loss")
    assert list(zip(line["step"], line["value"], strict=True)) == [(0, 2.5), (1, 2.25), (2, 2.0), (3, 2.0)]
    assert set(line["attempt_number"]) == {0}


@that_train
def test_every_line_is_what_was_logged(upgraded, trained):
    for line in trained["lines"]:
        run, attempt = line["run"], line.get("attempt")
        found = {metric: history(upgraded, run, metric, attempt=attempt) for metric in line["curves"]}
        assert {metric: of_curve(points) for metric, points in found.items()} == line["curves"]
        assert all((np.diff(points["step"]) > 0).all() for points in found.values())


@that_train
def test_a_line_has_no_other_metrics(upgraded, trained):
    newest = {line["run"]: set(line["curves"]) for line in trained["lines"] if "attempt" not in line}
    ids = {run: find_run(upgraded, run).id for run in newest}
    summaries = summarize_runs(upgraded, list(ids.values()))
    assert {run: set(summaries[each]) for run, each in ids.items()} == newest


def test_sealed_points_read_as_points_that_are_not(upgraded):
    every_series = upgraded.scalars(select(MetricSeries)).all()
    for change in (lambda run: unseal_points(upgraded, run), lambda run: seal_points(upgraded, run)):
        before = {key: points.tobytes() for key, points in curves(upgraded).items()}
        rows = {series.id: rows_of(upgraded, series) for series in every_series}
        for run in runs(upgraded):
            change(run)
        assert {key: points.tobytes() for key, points in curves(upgraded).items()} == before
        assert {series.id: rows_of(upgraded, series) for series in every_series} == rows


def test_some_points_are_sealed_and_some_are_not(upgraded):
    assert set(upgraded.scalars(select(TrainingPoint.is_sealed).distinct())) == {True, False}


def test_blocks_of_segments_are_those_of_their_points(upgraded):
    for segment in upgraded.scalars(select(MetricSegment)):
        blocks = zip(zip(*segment.block_steps, strict=True), zip(*segment.block_values, strict=True), strict=True)
        starts = range(0, segment.point_count, BLOCK_POINTS)
        for start, (steps, values) in zip(starts, blocks, strict=True):
            part = np.array(segment.point_values[start : start + BLOCK_POINTS])
            places = [start + each for each in (0, len(part) - 1, *(each or 0 for each in extremes(part)))]
            assert list(steps) == [segment.steps[at] for at in places]
            assert spelt(values) == spelt(segment.point_values[at] for at in places[1:])


def test_charts_have_the_extremes_of_the_points(upgraded):
    for run in runs(upgraded):
        for metric in summarize_runs(upgraded, [run.id])[run.id]:
            values, buckets = history(upgraded, run, metric)["value"], chart(upgraded, run, metric, buckets=10)
            assert buckets["point_count"].sum() == len(values)
            assert np.fmin.reduce(buckets["min_value"]) == np.fmin.reduce(values) or np.isnan(values).all()
            assert np.fmax.reduce(buckets["max_value"]) == np.fmax.reduce(values) or np.isnan(values).all()


def test_summaries_are_those_of_the_points(upgraded):
    points = select(TrainingPoint.step, TrainingPoint.value).order_by(TrainingPoint.step)
    every_series = upgraded.scalars(select(MetricSeries)).all()
    for series in every_series:
        steps, values = zip(*upgraded.execute(points.where(TrainingPoint.series_id == series.id)), strict=True)
        assert told(series.summary) == reached(np.array(steps), np.array(values))
    assert every_series


def test_summaries_of_lines_are_those_of_their_points(upgraded):
    found = summarize_runs(upgraded, [run.id for run in runs(upgraded)])
    for run_id, metrics in found.items():
        for metric, summary in metrics.items():
            line = history(upgraded, run_id, metric)
            assert told(summary) == reached(line["step"], line["value"])


def checkpoint_of(session, saved):
    named = {"step": saved["step"], "checkpoint_type": saved["type"], "status": "published"}
    attempt = attempt_of(session, saved["run"], saved["attempt"])
    return session.scalars(select(ModelCheckpoint).filter_by(attempt_id=attempt.id, **named)).one()


@that_train
def test_checkpoints_come_back_bit_for_bit_and_whole(upgraded, trained):
    for saved in trained["checkpoints"]:
        checkpoint = checkpoint_of(upgraded, saved)
        loaded = [load_checkpoint(upgraded, checkpoint.id, rank=rank) for rank in range(checkpoint.world_size)]
        assert [of_state(each) for each in loaded] == saved["states"]


@that_train
def test_some_checkpoint_was_saved_in_parts(upgraded, trained):
    several = [each for each in trained["checkpoints"] if len(each["states"]) > 1]
    for saved in several:
        checkpoint = checkpoint_of(upgraded, saved)
        assert {each.rank for each in checkpoint.ranks} == set(range(len(saved["states"])))
        for cut in (checkpoint.tensors, checkpoint.optimizer_states):
            assert any(each.full_shape is not None for each in cut)
    assert several


@that_train
def test_checkpoints_know_the_values_of_their_step(upgraded, trained):
    for saved in trained["checkpoints"]:
        run, attempt = saved["run"], saved["attempt"]
        metrics = load_checkpoint(upgraded, checkpoint_of(upgraded, saved).id, components=[]).metrics
        if run == trained["left"]["run"]:  # it was saved by hand
            continue
        assert metrics
        for metric, value in metrics.items():
            line = history(upgraded, run, metric, attempt=attempt)
            # JSON has no negative zero.
            np.testing.assert_array_equal(value, line["value"][line["step"] == saved["step"]].item())


@that_train
def test_weights_refer_to_the_gradients_that_were_saved_last(upgraded, trained):
    weights = [each for each in find_model(upgraded, trained["gradients"]["model"]).weights if each.gradient]
    wanted = [Wanted(each.name, each.gradient.id, each.gradient.nbytes) for each in weights]
    arrays = zip(weights, get_arrays(upgraded, wanted), strict=True)
    assert {f"gradients {each.name}": of_value(array) for each, array in arrays} == trained["gradients"]["states"]


@that_train
def test_runs_are_found_by_their_curves(upgraded, trained):
    run, similar = (find_run(upgraded, each) for each in trained["similar"])
    first = find_similar_runs(upgraded, run, k=1)[0]
    assert (first.run_id, round(first.similarity, 6)) == (similar.id, 1)


@that_train
def test_what_was_proven_can_be_proven_again(upgraded, trained):
    proven = trained["reproduced"]
    pairs = zip(proven["runs"], proven["attempts"], strict=True)
    attempt, against = (attempt_of(upgraded, run, number) for run, number in pairs)
    assert (attempt.verified_level, attempt.verified_against_id) == (proven["level"], against.id)
    found = verify_reproducibility(upgraded, attempt, against)
    assert (found.level, found.is_equal) == (proven["level"], True)
    assert found.point_count > 0
    assert found.checkpoint_count > 0


def test_a_run_that_nobody_ended_goes_on(opened, expected, tmp_path):
    left = expected.get("training", {}).get("left", {"run": "released/run", "first_step": 4})
    with opened.session() as session:
        run = find_run(session, left["run"])
        before = history(session, run, "loss")
    with training_run(
        opened, model=run.model_id, name=run.name, stale_after=1.0, spool_folder=tmp_path, capture=False
    ) as resumed:
        assert resumed.first_step == left["first_step"]
        resumed.log({"loss": 0.5}, resumed.first_step)
    with opened.session() as session:
        line = history(session, run.id, "loss")
        assert line[:-1].tobytes() == before[before["step"] < left["first_step"]].tobytes()
        assert line[["step", "value"]][-1].tolist() == (left["first_step"], 0.5)
        lost = attempt_of(session, run.id, resumed.attempt_number - 1)
        assert (lost.status, {each.status for each in lost.ranks} | {"lost"}) == ("lost", {"lost"})
        pending = select(ModelCheckpoint).filter_by(attempt_id=lost.id, status="pending")
        assert session.scalars(pending).all() == []


@that_serve
@pytest.mark.parametrize("way", serving.WAYS)
def test_keys_and_values_are_served_as_they_were_stored(upgraded, way):
    namespace = serving.kv_namespace(way)
    prefix = find_prefix(upgraded, namespace, serving.PROMPT)
    layers, faults = load_prefix(upgraded, namespace, LAYOUT, prefix)
    assert (prefix.token_count, faults) == (len(serving.PROMPT), [])
    for ours, theirs in zip(layers, make_layers(serving.PROMPT), strict=True):
        for found, stored in zip(ours, theirs, strict=True):
            if way == "int8":
                assert np.abs(found - stored).max() <= np.abs(stored).max() / 254 * 1.001
            else:
                assert found.tobytes() == stored.tobytes()


@that_serve
def test_activations_and_responses_are_served_as_they_were_stored(upgraded):
    found = get_activations(
        upgraded, serving.other_namespace("activation"), list(serving.ACTIVATIONS), input_digest(serving.INPUTS)
    )
    assert found is not None
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in serving.ACTIVATIONS.items()
    }
    assert find_response(upgraded, serving.other_namespace("response"), *serving.ASKED).response == "Rows."


@that_serve
def test_attention_is_what_it_was(upgraded):
    served = upgraded.scalars(select(InferenceSession).where(InferenceSession.name == "watched")).one()
    (stored,) = load_attention(upgraded, served, 0).values()
    assert stored.tobytes() == np.concatenate([serving.matrices()] * 2).tobytes()

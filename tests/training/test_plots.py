from __future__ import annotations

import math
import sys

import pytest
from matplotlib.image import imread

from arc_halo.errors import ConfigurationError, MetricError
from arc_halo.training.plots import CurvePlot, plot_runs
from tests.schema.rows import add_attempt, add_checkpoint, add_model, add_run
from tests.training.recorded import add_forked_run, add_points


@pytest.fixture
def plot(session):
    runs = [add_forked_run(session, name) for name in ("one", "two")]
    add_checkpoint(session, runs[0].attempts[-1], 15)
    add_checkpoint(session, runs[0].attempts[-1], 18, is_best=True)
    add_checkpoint(session, runs[0].attempts[0], 8)  # behind the fork
    add_points(session, runs[1].attempts[-1], [12, 13], [0.5, math.nan], name="accuracy", scope="validation")
    return plot_runs(session, runs, buckets=5, title="both")


def lines(panel):
    return [line for line in panel.lines if len(line.get_xdata()) > 1 and line.get_transform() == panel.transData]


def test_a_panel_for_each_metric_and_a_line_for_each_run(plot):
    loss, accuracy = plot.figure().axes
    assert [panel.get_title("left") for panel in (loss, accuracy)] == ["train/loss", "validation/accuracy"]
    assert [len(lines(panel)) for panel in (loss, accuracy)] == [2, 1]
    assert lines(loss)[0].get_color() != lines(loss)[1].get_color()
    assert lines(accuracy)[0].get_color() == lines(loss)[1].get_color()


def test_the_band_has_every_spike(plot):
    band = plot.figure().axes[0].collections[0]
    assert band.get_paths()[0].get_extents().ymax == 119


def test_checkpoints_and_forks_are_marked(plot):
    loss = plot.figure().axes[0]
    marked = {line.get_marker(): list(line.get_xdata()) for line in loss.lines[:4] if line.get_marker() in "^*"}
    assert marked == {"^": [15, 18], "*": [18]}
    assert [text.get_text() for text in loss.texts[:2]] == ["attempt 1", "attempt 2"]


def test_what_the_signs_mean(plot):
    (legend,) = plot.figure().legends
    said = [text.get_text() for text in legend.get_texts()]
    assert said == ["one@1/one", "two@1/two", "checkpoint", "best checkpoint", "resumed", "not finite"]


@pytest.fixture
def attempt(session):
    return add_attempt(session, add_run(session, add_model(session, "small"), "tune"))


def crosses(panel):
    """At the lower and at the upper edge: steps of what is not finite."""
    marked = [line for line in panel.lines if line.get_marker() == "x"]
    return [
        sorted(int(step) for line in marked for step, at in line.get_xydata() if (at > 0.5) == is_upper)
        for is_upper in (False, True)
    ]


def test_what_is_not_finite_is_marked_at_the_edges(session, attempt):
    add_points(session, attempt, range(6), [math.nan, 1, -math.inf, 2, 3, math.inf])
    plot = plot_runs(session, ["small/tune"])
    panel = plot.figure().axes[0]
    assert crosses(panel) == [[2], [0, 5]]
    assert panel.get_xlim()[0] <= 0
    assert panel.get_xlim()[1] >= 5
    assert "not finite" in [text.get_text() for text in plot.figure().legends[0].get_texts()]


def test_a_curve_that_diverges_is_marked_to_its_end(session, attempt):
    add_points(session, attempt, range(100), [*range(40), math.inf, *[math.nan] * 59])
    panel = plot_runs(session, ["small/tune"], buckets=10).figure().axes[0]
    assert crosses(panel) == [[], [40, 49, 50, 59, 60, 69, 70, 79, 80, 89, 90, 99]]
    assert panel.get_xlim()[0] <= 0
    assert panel.get_xlim()[1] >= 99


def test_a_finite_curve_has_no_crosses(session):
    plot = plot_runs(session, [add_forked_run(session)])
    assert crosses(plot.figure().axes[0]) == [[], []]
    assert "not finite" not in [text.get_text() for text in plot.figure().legends[0].get_texts()]


def test_a_point_between_such_that_are_not_finite_is_seen(session, attempt):
    add_points(session, attempt, range(6), [math.nan, 1, -math.inf, 2, 3, 4])
    line = lines(plot_runs(session, ["small/tune"]).figure().axes[0])[0]
    assert (line.get_marker(), list(line.get_markevery())) == ("o", [1])


def test_checkpoints_beyond_the_points_are_in_the_picture(session, attempt):
    add_points(session, attempt, [5, 6], [1, 2])
    for step in (2, 40):
        add_checkpoint(session, attempt, step)
    panel = plot_runs(session, ["small/tune"]).figure().axes[0]
    assert [list(line.get_xdata()) for line in panel.lines if line.get_marker() == "^"] == [[2, 40]]
    assert panel.get_xlim()[0] <= 2
    assert panel.get_xlim()[1] >= 40


def test_the_axis_begins_where_the_first_bucket_does(session, attempt):
    add_points(session, attempt, range(100), range(100))
    assert plot_runs(session, ["small/tune"], buckets=2).figure().axes[0].get_xlim()[0] <= 0


def test_files(plot, tmp_path):
    plot.save(tmp_path / "curves.png")
    assert imread(tmp_path / "curves.png").shape[0] > 300
    plot.save(tmp_path / "curves.svg")
    first = (tmp_path / "curves.svg").read_bytes()
    assert first.startswith(b"<?xml")
    plot.save(tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").read_bytes() == first


def test_a_notebook_shows_it(plot):
    assert plot._repr_png_().startswith(b"\x89PNG")
    assert 'alt="train/loss of one@1/one' in plot._repr_html_()


def test_smoothing_draws_what_was_smoothed(session):
    run = add_forked_run(session)
    panel = plot_runs(session, [run], ["loss"], smoothing=0.9).figure().axes[0]
    raw, smooth = lines(panel)[:2]
    assert raw.get_alpha() < 1
    assert max(smooth.get_ydata()) < max(raw.get_ydata())
    with pytest.raises(MetricError):
        plot_runs(session, [run], smoothing=1.0)


def test_a_logarithmic_scale(session):
    assert plot_runs(session, [add_forked_run(session)], log=True).figure().axes[0].get_yscale() == "log"


@pytest.mark.parametrize("values", [[], [1.0], [math.nan, math.nan], [math.inf, 1.0, -math.inf]])
def test_curves_of_few_values(session, attempt, values, tmp_path):
    add_points(session, attempt, range(len(values)), values)
    plot_runs(session, ["small/tune"], smoothing=0.5).save(tmp_path / "curves.png")


def test_nothing_is_drawn_of_nothing(tmp_path):
    CurvePlot([]).save(tmp_path / "curves.png")
    assert CurvePlot([]).figure().axes[0].texts[0].get_text() == "no points yet"


def test_without_matplotlib(plot, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert (plot._repr_png_(), plot._repr_html_()) == (None, None)
    with pytest.raises(ConfigurationError, match=r"arc-halo\[plot\]"):
        plot.save(tmp_path / "curves.png")

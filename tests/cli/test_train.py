"""``arc-halo train``."""

from __future__ import annotations

import datetime as dt
import json
import re
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sqlalchemy import select, update

from arc_halo import connect
from arc_halo.schema import TrainingAttempt, TrainingSession
from arc_halo.training.processes import this_process
from tests.cli.command_line import start
from tests.schema.rows import add_attempt, add_checkpoint, add_model, add_run
from tests.training.recorded import add_forked_run, add_points

if TYPE_CHECKING:
    from pathlib import Path

    from arc_halo.training.processes import ProcessIdentity
    from tests.cli.command_line import CommandLine


@pytest.fixture
def trained(arc_halo: CommandLine, migrated_url) -> CommandLine:
    """With a run ``tune@1/tune`` of three attempts, and ``small@1/first``, which is completed."""
    with connect(migrated_url) as database, database.session() as session:
        forked = add_forked_run(session)
        add_checkpoint(session, forked.attempts[0], 8)  # behind the fork
        add_checkpoint(session, forked.attempts[1], 9, nbytes=1_000_000, is_best=True)
        config = {"lr": 0.1, "optimizer": {"name": "adam"}}
        run = add_run(session, add_model(session, "small"), "first", status="completed", config=config, current_step=99)
        attempt = add_attempt(session, run, status="completed")
        add_points(session, attempt, range(100), 4 - np.arange(100) / 50, goal="minimize")
        add_points(session, attempt, range(0, 100, 10), np.arange(10) / 10, scope="validation", name="accuracy")
        session.commit()
    return arc_halo


def test_list(trained: CommandLine):
    header, first, second = trained.says("train", "list").splitlines()
    assert re.split(" {2,}", header.strip()) == [
        *("run", "status", "step", "attempts", "checkpoints", "best train/loss", "last heard of")
    ]
    assert first.split()[:6] == ["small@1/first", "completed", "99", "1", "0", "2.02"]
    assert second.split()[:6] == ["tune@1/tune", "running", "19", "of", "100", "3"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ((), ["first", "tune"]),
        (("--model", "small"), ["first"]),
        (("--status", "running", "--status", "failed"), ["tune"]),
        (("--config", "optimizer.name=adam", "--config", "lr=0.1"), ["first"]),
        (("--config", "lr=text"), []),
        (("--where", "best(loss) < 1"), ["tune"]),
        (("--sort", "best(loss)"), ["tune", "first"]),
        (("--sort", "best(loss)", "--descending", "--limit", "1"), ["first"]),
        (("--name", "f*"), ["first"]),
    ],
)
def test_list_of_some(trained: CommandLine, options, names):
    assert [each["name"] for each in trained.json("train", "list", *options)] == names


def test_list_as_json(trained: CommandLine):
    listed = trained.json("train", "list")[0]
    assert (listed["run"], listed["config"]["lr"]) == ("small@1/first", 0.1)
    assert listed["metrics"]["train/loss"]["best_value"] == pytest.approx(2.02)
    assert listed["metrics"]["validation/accuracy"]["goal"] is None


def test_list_of_nothing(arc_halo: CommandLine):
    assert arc_halo.says("train", "list").startswith("no runs yet")
    assert arc_halo.says("train", "list", "--status", "failed").startswith("no such runs")
    assert arc_halo.json("train", "list") == []


def test_list_with_what_is_no_condition(trained: CommandLine):
    assert "is no condition; write" in trained.error("train", "list", "--where", "loss")
    assert "'bogus(loss)' is no figure" in trained.error("train", "list", "--where", "bogus(loss) < 2")
    assert "is no KEY=VALUE" in trained.run("train", "list", "--config", "lr", code=2).stderr


def test_list_of_a_status_that_there_is_not(trained: CommandLine):
    said = trained.run("train", "list", "--status", "weird", code=2).stderr
    assert all(status in said for status in ("weird", "pending", "running", "completed", "failed", "stopped"))


@pytest.mark.parametrize("options", [("--where", "accurcy < 2"), ("--sort", "best(accurcy)")])
def test_list_by_a_metric_that_no_run_has(trained: CommandLine, options):
    said = trained.error("train", "list", *options)
    assert "no run has recorded 'accurcy'; did you mean validation/accuracy?" in said


def test_show(trained: CommandLine):
    shown = trained.says("train", "show", "tune/tune")
    assert "running, step 19 of 100, 2 checkpoints" in shown
    assert "1 at step 9" in shown
    assert "train/loss  ▁▁" in shown
    assert "119 @ 19" in shown
    first = trained.says("train", "show", "small/first")
    assert "optimizer.name  adam" in first
    assert "2.02 @ 99" in first


def test_show_ends_with_the_config_in_the_order_of_the_alphabet(trained: CommandLine, migrated_url):
    config = {"zeta_of_all": 1, "b": {"z": 2, "along": {"y": 3}}, "a": 4, "be": {}}
    with connect(migrated_url) as database, database.session() as session:
        run = session.scalars(select(TrainingSession).where(TrainingSession.name == "first")).one()
        run.config = config
        session.commit()
    lines = [line.split() for line in trained.says("train", "show", "small/first").splitlines()]
    assert lines[-6:] == [
        ["set", "to"],
        *(["a", "4"], ["b.along.y", "3"], ["b.z", "2"], ["be", "{}"], ["zeta_of_all", "1"]),
    ]
    assert [line[0] for line in lines if line[0] in ("attempt", "metric")] == ["attempt", "metric"]


def test_show_as_json(trained: CommandLine):
    told = trained.json("train", "show", "tune@1/tune")
    assert [each["fork_step"] for each in told["attempts"]] == [None, 5, 9]
    assert told["metrics"]["train/loss"]["last_value"] == 119


def test_a_name_that_is_not_there(trained: CommandLine):
    for command in (["show"], ["compare"], ["tail", "--once"], ["checkpoints"], ["resume-info"], ["delete", "--yes"]):
        assert "no training run 'tune/tine'; did you mean tune/tune?" in trained.error("train", *command, "tune/tine")


def test_a_run_by_the_beginning_of_its_id(trained: CommandLine):
    told = trained.json("train", "show", "small/first")
    assert trained.json("train", "show", told["id"][:-3])["run"] == "small@1/first"


def test_compare(trained: CommandLine, tmp_path: Path):
    shown = trained.says("train", "compare", "small/first", "tune/tune", "--plot", tmp_path / "both.png")
    assert re.search(r"^optimizer\.name +adam +$", shown, re.MULTILINE)
    assert re.search(r"^best train/loss +2\.02 @ 99 +0 @ 0 *$", shown, re.MULTILINE)
    assert (tmp_path / "both.png").stat().st_size > 10_000
    told = trained.json("train", "compare", "small/first", "tune/tune")
    assert {each["key"] for each in told["differences"]} == {"lr", "optimizer.name"}


def test_compare_one_metric(trained: CommandLine):
    shown = trained.says("train", "compare", "small/first", "tune/tune", "--metric", "validation/accuracy")
    assert re.search(r"last validation/accuracy +0\.9 @ 90", shown)
    assert "train/loss" not in shown


@pytest.mark.parametrize("name", ["curves.png", "curves.svg"])
def test_plot(trained: CommandLine, tmp_path: Path, name):
    said = trained.says("train", "plot", "tune/tune", "small/first", "--smoothing", "0.5", "-o", tmp_path / name)
    assert said == f"drew 2 curves in {tmp_path / name}\n"
    told = trained.json("train", "plot", "small/first", "--metric", "validation/accuracy", "--output", tmp_path / name)
    assert told["curves"] == [{"run": "small@1/first", "metric": "validation/accuracy", "points": 10}]


@pytest.mark.parametrize(
    "options", [("-o", "curves.gif"), ("-o", "nowhere/curves.png"), ("-o", "x.png", "--smoothing", "1"), ()]
)
def test_plots_that_cannot_be(trained: CommandLine, options):
    trained.run("train", "plot", "small/first", *options, code=2)


def test_plot_of_a_metric_that_is_not_there(trained: CommandLine, tmp_path: Path):
    said = trained.error("train", "plot", "small/first", "--metric", "accuracy", "-o", tmp_path / "x.png")
    assert "has no metric 'accuracy'" in said
    assert "validation/accuracy" in said


def test_tail_once(trained: CommandLine):
    shown = trained.says("train", "tail", "tune/tune", "--once")
    assert re.search(r"^tune@1/tune  running, step 19 of 100, attempt 2, heard of \d+ s ago$", shown, re.MULTILINE)
    assert "━━━━━━━━────" in shown
    assert " 19%" in shown
    assert "train/loss  ▁▁▁▁▁▁▁▁▁▁" in shown
    told = trained.json("train", "tail", "tune/tune", "--once")
    assert told["curves"]["train/loss"] == [*range(10), *range(110, 120)]


def test_tail_once_as_json_is_a_line_of_what_was_asked(trained: CommandLine):
    asked = ("train", "tail", "small/first", "--once", "--json")
    (line,) = trained.says(*asked, "--metric", "validation/accuracy").splitlines()
    told = json.loads(line)
    assert list(told["curves"]) == list(told["metrics"]) == ["validation/accuracy"]
    assert sorted(json.loads(trained.says(*asked))["metrics"]) == ["train/loss", "validation/accuracy"]


def test_tail_of_a_run_that_is_over(trained: CommandLine):
    assert trained.says("train", "tail", "small/first") == "step 99, completed: train/loss 2.02\n"
    assert trained.says("train", "tail", "small/first", "--metric", "validation/accuracy").endswith("accuracy 0.9\n")
    lines = trained.run("train", "tail", "small/first", "--json").stdout.splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["completed"]


def test_tail_follows_a_run_to_its_end(trained: CommandLine, migrated_url):
    def go_on():
        with connect(migrated_url) as database, database.session() as session:
            run = session.scalars(select(TrainingSession).where(TrainingSession.name == "tune")).one()
            for values in ({"current_step": 20}, {"current_step": 21, "status": "stopped"}):
                time.sleep(1)
                session.execute(update(TrainingSession).where(TrainingSession.id == run.id).values(**values))
                session.commit()

    thread = threading.Thread(target=go_on)
    thread.start()
    lines = trained.says("train", "tail", "tune/tune", "--every", "0.1").splitlines()
    thread.join()
    assert [line.split(":")[0] for line in lines] == ["step 19, running", "step 20, running", "step 21, stopped"]


def test_tail_on_a_terminal_is_one_picture(trained: CommandLine, monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    assert "small@1/first  completed, step 99" in trained.says("train", "tail", "small/first")


def test_tail_is_left_quietly(trained: CommandLine):
    process = start("--url", trained.url, "train", "tail", "tune/tune", "--every", "0.2")
    assert process.stdout.readline().startswith("step 19, running")
    process.send_signal(2)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, "")


def test_a_silent_run_is_told(trained: CommandLine, migrated_url):
    with connect(migrated_url) as database, database.session() as session:
        session.execute(update(TrainingAttempt).values(heartbeat_at="2026-01-01T00:00:00Z"))
        session.commit()
    assert "running, silent for" in trained.says("train", "list", "--name", "tune")
    assert "it may be taken over" in trained.says("train", "resume-info", "tune/tune")


def test_checkpoints(trained: CommandLine):
    _, aside, best, told = trained.says("train", "checkpoints", "tune/tune").splitlines()
    assert aside.split()[:4] == ["8", "full", "0", "aside"]
    assert best.split()[:6] == ["9", "full", "1", "best", "1.0", "MB"]
    assert told == "not on the line of the newest attempt: 1 checkpoint, at step 8"
    assert [each["is_on_line"] for each in trained.json("train", "checkpoints", "tune/tune")] == [False, True]
    assert trained.says("train", "checkpoints", "small/first") == "small@1/first has no checkpoints\n"


def test_resume_info(trained: CommandLine):
    said = trained.says("train", "resume-info", "tune/tune")
    assert "goes on from step 9, published" in said
    assert "with weights, no optimizer, no random state, no data position" in said
    assert "recorded up to step 19: 10 of these are trained again" in said
    assert trained.json("train", "resume-info", "tune/tune")["checkpoint"]["step"] == 9
    anew = trained.json("train", "resume-info", "small/first")
    assert (anew["checkpoint"], anew["steps_again"]) == (None, 100)


def keep_by(url, process: ProcessIdentity):
    kept = {"host": process.host, "boot_id": process.boot_id, "pid": process.pid}
    with connect(url) as database, database.session() as session:
        session.execute(update(TrainingAttempt).values(**kept, process_started_at=process.started_at))
        session.commit()


def test_resume_info_looks_for_the_process(trained: CommandLine, migrated_url):
    alive = this_process()
    keep_by(migrated_url, alive)
    assert "a next one is refused until" in trained.says("train", "resume-info", "tune/tune")
    assert trained.json("train", "resume-info", "tune/tune")["is_process_gone"] is False
    keep_by(migrated_url, replace(alive, started_at=alive.started_at - dt.timedelta(days=1)))
    said = trained.says("train", "resume-info", "tune/tune")
    assert "but its process is gone: a next one takes it over at once" in said
    assert "refused" not in said
    assert trained.json("train", "resume-info", "tune/tune")["is_process_gone"] is True
    assert trained.json("train", "resume-info", "small/first")["is_process_gone"] is None


def test_seal(trained: CommandLine):
    before = trained.says("train", "show", "small/first")
    assert trained.says("train", "seal", "small/first") == "packed 110 points of 2 series of small@1/first\n"
    assert trained.json("train", "seal", "small/first")["point_count"] == 0
    assert trained.says("train", "show", "small/first") == before


def test_delete(trained: CommandLine):
    refused = trained.run("train", "delete", "small/first", answer="n\n", code=1)
    assert "Delete small@1/first (110 points on its line, 0 checkpoints)?" in refused.stderr
    assert trained.json("train", "delete", "small/first", "--yes")["point_count"] == 110
    assert [each["name"] for each in trained.json("train", "list")] == ["tune"]


def test_delete_where_nobody_can_be_asked(trained: CommandLine):
    refused = trained.run("train", "delete", "small/first", code=1)
    assert refused.stderr.splitlines()[-1] == (
        "error: nobody can be asked, for stdin is no terminal; --yes deletes without asking"
    )
    assert "Aborted" not in refused.output
    assert refused.stdout.strip() == ""
    assert len(trained.json("train", "list")) == 2


def test_delete_of_a_run_in_use(trained: CommandLine):
    assert "error: " in trained.error("train", "delete", "tune/tune", "--yes")
    assert trained.says("train", "delete", "tune/tune", "--yes", "--force").startswith(
        "deleted tune@1/tune: 3 attempts"
    )


def test_a_model_is_deleted_with_its_runs_and_says_so(trained: CommandLine):
    asked = trained.run("model", "delete", "small", answer="n\n", code=1)
    assert ", and 1 training run with 0 checkpoints?" in asked.stderr
    assert "deleted small@1 with 1 training run with 0 checkpoints; " in trained.says(
        "model", "delete", "small", "--yes"
    )


def test_a_model_that_is_trained_is_deleted_by_force_alone(trained: CommandLine):
    assert "tune@1 is being trained by tune, and its runs" in trained.error("model", "delete", "tune", "--yes")
    deleted = trained.json("model", "delete", "tune", "--yes", "--force")
    assert deleted["run_count"] == 1

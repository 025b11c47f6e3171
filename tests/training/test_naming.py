from __future__ import annotations

import uuid

import pytest

from arc_halo.errors import MetricNotFound, RunNotFound
from arc_halo.schema import ModelAlias
from arc_halo.training.naming import find_run, metric_not_found, run_name, runs_meant
from tests.schema.rows import add, add_model, add_run

OLD = uuid.UUID("11110000-0000-7000-8000-000000000000")
NEW = uuid.UUID("11111111-0000-7000-8000-000000000000")


@pytest.fixture
def model(session):
    return add_model(session, "lab/small")


def test_by_name(session, model):
    run = add_run(session, model, "sweep/1")
    for reference in ("lab/small/sweep/1", "lab/small@1/sweep/1", run.id, run):
        assert find_run(session, reference) is run
    assert run_name(run) == "lab/small@1/sweep/1"


def test_a_name_alone_is_the_newest_version_that_has_the_run(session, model):
    second = add_model(session, "lab/small", version="2")
    runs = [add_run(session, each, "tune") for each in (model, second)]
    only = add_run(session, model, "first")
    assert find_run(session, "lab/small/tune") is runs[1]
    assert find_run(session, "lab/small@1/tune") is runs[0]
    assert find_run(session, "lab/small/first") is only


def test_by_alias(session, model):
    add(session, ModelAlias(name=model.name, alias="production", model_id=model.id))
    run = add_run(session, model, "tune")
    assert find_run(session, "lab/small@production/tune") is run


def test_by_the_beginning_of_its_id(session, model):
    old, new = (add_run(session, model, str(each)[:8], id=each) for each in (OLD, NEW))
    assert find_run(session, "11110") is old
    assert find_run(session, str(NEW).upper()) is new
    with pytest.raises(RunNotFound, match=r"several ids begin with '1111': .*/11111111.*give more"):
        find_run(session, "1111")


@pytest.mark.parametrize("reference", ["lab/small/tine", "lab/smal/tune", "tune"])
def test_near_names_are_told(session, model, reference):
    add_run(session, model, "tune")
    with pytest.raises(RunNotFound, match="lab/small/tune"):
        find_run(session, reference)


@pytest.mark.parametrize("reference", ["", "/", "11", "%", "____", "a\0b", "\ud800", uuid.UUID(int=0)])
def test_what_names_no_run(session, reference):
    with pytest.raises(RunNotFound):
        find_run(session, reference)


def test_a_percent_sign_is_no_pattern(session, model):
    add_run(session, model, "tune")
    with pytest.raises(RunNotFound):
        find_run(session, "lab/small/t%")


def test_near_metrics_are_told(session, model):
    run = add_run(session, model, "tune")
    error = metric_not_found(run, "train/los", ["train/loss", "train/lr", "test/f1"])
    assert isinstance(error, MetricNotFound)
    assert "lab/small@1/tune has no metric 'train/los'; did you mean train/loss" in str(error)
    assert "recorded nothing" in str(metric_not_found(run, "loss", []))


def test_many_runs_are_found_at_once(session, model, count_statements):
    second = add_model(session, "lab/small", version="2")
    runs = [add_run(session, each, f"sweep/{number}") for each in (model, second) for number in range(40)]
    by_id = add_run(session, model, "by id", id=NEW)
    names = [f"lab/small@{each.model.version}/{each.name}" for each in runs]
    session.flush()
    with count_statements(session.get_bind().engine) as statements:
        found = runs_meant(session, [*names, by_id.id, names[3], runs[5]])
    assert found == [*runs, by_id]
    assert len(statements) == 2
    assert runs_meant(session, ["lab/small/sweep/1", "1111111", "lab/small@1/sweep/1"]) == [runs[41], by_id, runs[1]]
    assert runs_meant(session, []) == []
    with pytest.raises(RunNotFound, match="lab/small/sweep"):
        runs_meant(session, ["lab/small/sweep/1", "lab/small/sweep/99"])

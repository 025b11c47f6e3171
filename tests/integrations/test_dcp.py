"""Checkpoints of several processes through `torch.distributed.checkpoint`, saved by some and loaded by others."""

from __future__ import annotations

import pytest
import torch
from sqlalchemy import select

from arc_halo import create_model
from arc_halo.integrations.torch import from_numpy
from arc_halo.schema import ModelCheckpoint
from arc_halo.training.finding import latest_checkpoint
from arc_halo.training.history import history
from arc_halo.training.loading import load_checkpoint
from arc_halo.training.run import training_run
from tests.fixtures import rank_programs as programs
from tests.fixtures.ranks import ranks, run_ranks


@pytest.fixture
def url(database):
    database.transaction(lambda session: create_model(session, "m", {}, {"w": torch.ones(3).numpy()}))
    return database.engine.url


@pytest.mark.parametrize(("savers", "loaders"), [(2, 1), (2, 3), (1, 2)])
def test_shards_of_some_ranks_are_loaded_by_others(url, tmp_path, savers, loaders):
    saved = run_ranks(tmp_path, savers, programs.train_and_save, url, True)
    loaded = run_ranks(tmp_path, loaders, programs.load, url, True)
    assert all(each == saved[0] for each in (*saved, *loaded))


@pytest.mark.parametrize(("savers", "loaders"), [(2, 0), (2, 3), (0, 2)])
def test_what_all_ranks_hold_is_loaded_by_any_number(url, tmp_path, savers, loaders):
    saved = run_ranks(tmp_path, savers, programs.train_and_save, url, False)
    loaded = run_ranks(tmp_path, loaders, programs.load, url, False)
    assert all(each == saved[0] for each in (*saved, *loaded))


def test_joined_keys_of_an_optimizer(url, tmp_path):
    saved = run_ranks(tmp_path, 2, programs.train_and_save, url, True, True)
    loaded = run_ranks(tmp_path, 3, programs.load, url, True, True)
    assert "optim.state.head.weight.exp_avg" in saved[0]
    assert all(each == saved[0] for each in (*saved, *loaded))


def test_shards_are_whole_arrays_to_others(url, database, tmp_path):
    (saved, _) = run_ranks(tmp_path, 2, programs.train_and_save, url, True)
    with database.session() as session:
        loaded = load_checkpoint(session, "m")
    assert {f"model.{name}": programs.digest(from_numpy(array)) for name, array in loaded.weights.items()} == {
        name: value for name, value in saved.items() if name.startswith("model.")
    }
    moments = {name: states["exp_avg"] for name, states in loaded.optimizer.states.items()}
    assert {f"optim.state.{name}.exp_avg": programs.digest(from_numpy(array)) for name, array in moments.items()} == {
        name: value for name, value in saved.items() if name.endswith("exp_avg")
    }
    assert [group["weight_decay"] for group in loaded.optimizer.groups] == [0.01, 0.0]


def test_what_each_rank_has_for_itself(url, tmp_path):
    drawn = run_ranks(tmp_path, 2, programs.save_own_entries, url)
    assert drawn[0] != drawn[1]
    assert run_ranks(tmp_path, 2, programs.load_own_entries, url) == drawn


def test_sharded_tensors_beside_the_model(url, database, tmp_path):
    saved = run_ranks(tmp_path, 2, programs.save_average_beside, url)
    loaded = run_ranks(tmp_path, 3, programs.load_average, url)
    assert all(each == saved[0] for each in (*saved, *loaded))
    with database.session() as session:
        assert "average.head.bias" in load_checkpoint(session, "m").weights


def test_an_object_on_one_rank_is_refused_and_leaves_nothing(url, tmp_path):
    for refused, found, is_saved in run_ranks(tmp_path, 2, programs.save_an_object, url):
        assert list(refused) == [1]
        assert "CheckpointError" in refused[1]
        assert "of-1 is a tests.fixtures.rank_programs.Unpicklable" in refused[1]
        assert found is None
        assert is_saved


def test_ranks_whose_state_dicts_differ_are_told(url, tmp_path):
    for (told,) in run_ranks(tmp_path, 2, programs.save_disagreeing, url):
        assert "laid out otherwise" in told


def test_saving_beside_training(url, tmp_path):
    saved = run_ranks(tmp_path, 2, programs.save_beside_training, url)
    loaded = run_ranks(tmp_path, 1, programs.load, url, True)
    assert loaded[0] == saved[0]


def test_all_ranks_learn_that_a_run_is_in_use(url, database, tmp_path):
    with training_run(database, model="m", name="run", capture=False, spool_folder=tmp_path / "spool"):
        for told in run_ranks(tmp_path, 2, programs.open_a_run_in_use, url):
            assert told.startswith("RunInUse")


def test_a_rank_that_is_killed_leaves_nothing_and_the_next_save_works(url, database, tmp_path):
    with ranks(tmp_path, 2, programs.save_while_one_stalls, url) as (first, second):
        assert second.hear() == "writing"
        second.kill()
        assert "Error" in first.failure()
    with database.session() as session:
        assert latest_checkpoint(session, "m") is None
    saved = run_ranks(tmp_path, 2, programs.train_and_save, url, True)
    assert run_ranks(tmp_path, 1, programs.load, url, True) == saved[:1]
    with database.session() as session:
        assert session.scalars(select(ModelCheckpoint.status)).all() == ["published"]


@pytest.mark.parametrize("killed", [(0, 1), (1,)], ids=["all", "one"])
def test_what_is_resumed_ends_as_what_was_never_stopped(url, database, tmp_path, killed):
    straight = run_ranks(tmp_path, 2, programs.train_on, url, "straight", 200)
    with ranks(tmp_path, 2, programs.train_on, url, "resumed", 200, 120) as started:
        assert [each.hear() for each in started] == [120, 120]
        for rank in killed:
            started[rank].kill()
    resumed = run_ranks(tmp_path, 2, programs.train_on, url, "resumed", 200)
    assert resumed == straight
    with database.session() as session:
        for context in (None, {"rank": 1}):
            lines = [history(session, f"m/{name}", "loss", context=context) for name in ("straight", "resumed")]
            assert lines[0]["value"].tolist() == lines[1]["value"].tolist()
            assert lines[1]["step"].tolist() == list(range(200))
            assert set(lines[1]["attempt_number"]) == {1, 2}

"""Runs of the Trainer in the database: metrics, status, checkpoints, and going on as if nothing had happened."""

from __future__ import annotations

import accelerate  # noqa: F401  (the Trainer asks for it)
import pytest
import torch
from sqlalchemy import select
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from arc_halo.errors import CheckpointNotFound, ConfigurationError, StateMismatch
from arc_halo.integrations.torch import save_state_dict
from arc_halo.integrations.transformers import ArcHaloCallback, ArcHaloTrainerMixin
from arc_halo.integrations.transformers_folder import export_checkpoint
from arc_halo.schema import ModelCheckpoint, ModelWeight, TrainingSession
from arc_halo.training.history import history
from arc_halo.training.loading import load_checkpoint
from arc_halo.training.run import training_run
from tests.fixtures.small_trainer import losses, make_model, make_trainer, state_of

pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries warn of is not ours


class DatabaseTrainer(ArcHaloTrainerMixin, Trainer):
    pass


class Crash(Exception):
    pass


class CrashAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, _args, state, _control, **_):
        if state.global_step == self.step:
            raise Crash


@pytest.fixture
def db(database, tmp_path, monkeypatch):
    monkeypatch.setenv("ARC_HALO_HOME", str(tmp_path / "home"))
    model = make_model()
    database.transaction(lambda session: save_state_dict(session, "lm", model.config.to_dict(), model.state_dict()))
    return database


def train(db, folder, steps, *, crash=None, name="tune", resume="auto", goes_on=None, **options):
    """A run of the mixin's Trainer, which may crash after a step."""
    with training_run(db, model="lm", name=name, resume=resume, capture=False) as run:
        given = {"run": run} | options.pop("given", {})
        trainer = make_trainer(folder, steps, trainer=DatabaseTrainer, given=given, **options)
        if crash is not None:
            trainer.add_callback(CrashAfter(crash))
        trainer.train(goes_on)
    return trainer


def crashed(db, folder, steps, crash, **options):
    with pytest.raises(Crash):
        train(db, folder, steps, crash=crash, **options)


def curve(db, metric="loss", name="tune", **options):
    with db.session() as session:
        run = session.scalars(select(TrainingSession).where(TrainingSession.name == name)).one()
        points = history(session, run, metric, **options)
        return dict(zip(points["step"].tolist(), points["value"].tolist(), strict=True))


def checkpoints(db):
    with db.session() as session:
        rows = session.scalars(select(ModelCheckpoint).order_by(ModelCheckpoint.published_at)).all()
        return [(row.step, row.checkpoint_type, row.is_best) for row in rows]


@pytest.mark.parametrize(
    "options",
    [{}, {"kind": "llama", "dtype": torch.bfloat16}, {"bf16": True, "optim": "adafactor"}],
    ids=["gpt2", "bf16 weights", "autocast and adafactor"],
)
@pytest.mark.parametrize("crash", [9, 12])  # after checkpoints of steps 7, and 11 at the end of an epoch
def test_it_goes_on_bit_for_bit(db, tmp_path, options, crash):
    straight = make_trainer(tmp_path / "straight", 20, save_strategy="no", **options)
    straight.train()
    expected = state_of(straight)
    saving = {"save_steps": 7 if crash == 9 else 11}
    crashed(db, tmp_path, 20, crash, **saving, **options)
    resumed = train(db, tmp_path, 20, **saving, **options)
    assert state_of(resumed) == expected
    assert losses(resumed) == losses(straight) == curve(db)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_its_log_after_resuming_is_the_history(db, tmp_path):
    crashed(db, tmp_path, 20, 9, eval_strategy="steps", eval_steps=4)
    resumed = train(db, tmp_path, 20, eval_strategy="steps", eval_steps=4)
    evaluated = {entry["step"]: entry["eval_loss"] for entry in resumed.state.log_history if "eval_loss" in entry}
    assert list(evaluated) == [4, 8, 12, 16, 20]
    assert evaluated == curve(db, scope="validation")
    steps = [entry["step"] for entry in resumed.state.log_history]
    assert steps == sorted(steps)


def test_status_plan_and_arguments_are_kept(db, tmp_path):
    train(db, tmp_path, 3)
    with db.session() as session:
        run = session.scalars(select(TrainingSession)).one()
        assert (run.status, run.total_steps, run.total_epochs, run.current_step) == ("completed", 3, 1.0, 3)
        assert run.config["learning_rate"] == 0.01
        assert run.model.status == "trained"


def test_a_crash_is_told(db, tmp_path):
    crashed(db, tmp_path, 20, 2)
    with db.session() as session:
        assert session.scalars(select(TrainingSession)).one().status == "failed"


class Waking(TrainerCallback):
    """Freezes a parameter in the midst of training."""

    def on_step_end(self, _args, state, _control, model, **_):
        if state.global_step == 2:
            model.transformer.wpe.weight.requires_grad_(False)


def test_what_is_frozen_on_the_way_stays_so(db, tmp_path):
    crashed(db, tmp_path, 12, 9, given={"callbacks": [Waking()]})
    resumed = train(db, tmp_path, 12)
    assert not resumed.model.transformer.wpe.weight.requires_grad


def test_the_best_checkpoint_is_loaded_at_the_end(db, tmp_path):
    options = {
        "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4, "load_best_model_at_end": True,
        "metric_for_best_model": "loss", "learning_rate": 0.5,
    }  # fmt: skip
    crashed(db, tmp_path, 16, 10, **options)
    resumed = train(db, tmp_path, 16, **options)
    best = min(curve(db, scope="validation").items(), key=lambda point: point[1])[0]
    assert [step for step, _, is_best in checkpoints(db) if is_best] == [best] == [resumed.state.best_global_step]
    with db.session() as session:
        found = session.scalars(select(ModelCheckpoint).where(ModelCheckpoint.is_best)).one()
        loaded = load_checkpoint(session, found)
    name = "transformer.wte.weight"
    assert loaded.weights[name].tobytes() == resumed.model.state_dict()[name].numpy().tobytes()


def test_callbacks_with_state_go_on(db, tmp_path):
    options = {
        "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "metric_for_best_model": "loss",
        "learning_rate": 0.0, "load_best_model_at_end": True, "restore_callback_states_from_checkpoint": True,
    }  # fmt: skip
    patience = EarlyStoppingCallback(early_stopping_patience=4)
    crashed(db, tmp_path, 20, 3, given={"callbacks": [patience]}, **options)
    assert patience.early_stopping_patience_counter == 1
    resumed = train(db, tmp_path, 20, given={"callbacks": [EarlyStoppingCallback(4)]}, **options)
    assert resumed.state.global_step == 5  # the first evaluation was the best


def test_weights_alone(db, tmp_path):
    train(db, tmp_path, 7, save_only_model=True)
    assert checkpoints(db) == [(7, "weights", True)]


def test_saving_beside_training(db, tmp_path):
    straight = train(db, tmp_path / "a", 20, save_steps=3, name="waiting")
    beside = train(db, tmp_path / "b", 20, save_steps=3, name="beside", given={"save_in_background": True})
    assert state_of(straight) == state_of(beside)
    with db.session() as session:
        statement = select(ModelCheckpoint.step, ModelCheckpoint.manifest_digest).order_by(ModelCheckpoint.step)
        found = session.execute(statement.where(ModelCheckpoint.checkpoint_type == "full")).all()
    digests = {}
    for step, digest in found:
        digests.setdefault(step, []).append(digest)
    assert {step: len(set(each)) for step, each in digests.items()} == dict.fromkeys([3, 6, 9, 12, 15, 18, 20], 1)


def test_a_callback_alone_saves_what_a_stock_trainer_goes_on_from(db, tmp_path):
    straight = make_trainer(tmp_path / "straight", 20, save_strategy="no")
    straight.train()
    expected = state_of(straight)
    with pytest.raises(Crash), training_run(db, model="lm", name="tune", capture=False) as run:
        make_trainer(tmp_path, 20, given={"callbacks": [ArcHaloCallback(run), CrashAfter(9)]}).train()
    with training_run(db, model="lm", name="tune", capture=False) as run:
        folder = tmp_path / "again" / "checkpoint-7"
        with db.session() as session:
            export_checkpoint(session, run.resumed_from, folder)
        resumed = make_trainer(tmp_path / "again", 20, given={"callbacks": [ArcHaloCallback(run)]})
        resumed.train(resume_from_checkpoint=str(folder))
    assert state_of(resumed) == expected
    assert curve(db) == losses(straight) == losses(resumed)


def test_a_folder_of_the_stock_trainer_may_be_gone_on_from(db, tmp_path):
    straight = make_trainer(tmp_path / "stock", 20)
    straight.train()
    expected = state_of(straight)
    resumed = train(db, tmp_path / "other", 20, goes_on=str(tmp_path / "stock" / "checkpoint-7"))
    assert state_of(resumed) == expected
    assert [step for step, *_ in checkpoints(db)] == [14, 20]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_device_train_batch_size": 2}, "batch_size 2 in the place of 4"),
        ({"gradient_accumulation_steps": 1}, "accumulation 1 in the place of 2"),
        ({"data_seed": 9}, "seed 9 in the place of 5"),
    ],
)
def test_other_data_are_refused(db, tmp_path, options, message):
    crashed(db, tmp_path, 20, 9)
    with pytest.raises(StateMismatch, match=message):
        train(db, tmp_path, 20, **options)
    assert train(db, tmp_path, 12, ignore_data_skip=True, **options).state.global_step == 12


def test_another_model_is_refused(db, tmp_path):
    crashed(db, tmp_path, 20, 9)
    with pytest.raises(StateMismatch, match="in the checkpoint and not in the module"):
        train(db, tmp_path, 20, kind="llama")


def test_there_must_be_a_checkpoint_where_that_is_said(db, tmp_path):
    with pytest.raises(CheckpointNotFound, match="resumes nothing"):
        train(db, tmp_path, 3, goes_on=True)
    assert train(db, tmp_path, 3, goes_on=False).state.global_step == 3


def test_what_it_cannot_do_is_refused_at_once(db, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda *_, **__: None)  # which would ask the hub
    with pytest.raises(ConfigurationError, match="pushes its folders to the hub"):
        train(db, tmp_path, 3, push_to_hub=True, hub_token="none", hub_model_id="lab/none")


def test_logs_are_numbers_by_scope(db, tmp_path):
    with training_run(db, model="lm", name="tune", capture=False) as run:
        trainer = make_trainer(tmp_path, 3, given={"callbacks": [ArcHaloCallback(run)]})
        trainer.state.global_step, trainer.state.epoch = 2, 0.5
        trainer.log({"loss": torch.tensor(1.5), "eval_acc": 0.25, "eval_runtime": 3.0, "note": "text", "eval_": 1})
    assert curve(db) == {2: 1.5}
    assert curve(db, "acc", scope="validation") == {2: 0.25}
    assert curve(db, "eval_runtime", scope="system") == {2: 3.0}
    assert curve(db, "eval_") == {2: 1.0}


def test_trainable_weights_may_be_told(db, tmp_path):
    with training_run(db, model="lm", name="tune", trainable={"transformer.wte.weight"}, capture=False) as run:
        make_trainer(tmp_path, 1, trainer=DatabaseTrainer, given={"run": run}).train()
    with db.session() as session:
        trainable = session.scalars(select(ModelWeight.name).where(ModelWeight.is_trainable)).all()
    assert trainable == ["transformer.wte.weight"]


def test_the_data_position_can_be_asked_for(db, tmp_path):
    train(db, tmp_path, 7)
    with db.session() as session:
        state = session.scalars(select(ModelCheckpoint.data_loader_state)).one()
    expected = {"step": 7, "epoch": 7 / 10.5, "examples": 84, "batch_size": 4, "accumulation": 2, "seed": 5}
    assert {name: state["0"][name] for name in expected} == expected

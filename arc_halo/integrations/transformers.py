"""Runs of a Trainer: metrics by a callback, checkpoints and resuming by a mixin; the extra ``transformers``."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, update
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from arc_halo.errors import CheckpointNotFound, ConfigurationError, StateMismatch
from arc_halo.integrations.torch_training.capturing import capture_state, restore_optimizer, restore_state
from arc_halo.integrations.torch_training.rng import restore_rng
from arc_halo.integrations.torch_trees import from_plain
from arc_halo.integrations.transformers_state import (
    BEST,
    TRAINER,
    describe_trainer,
    read_log_history,
    split_logs,
    trainer_state,
)
from arc_halo.schema import TrainingSession
from arc_halo.training.finding import checkpoint_on_line
from arc_halo.training.loading import load_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session
    from transformers import Trainer as _Trainer

    from arc_halo.training.checkpoint import LoadedCheckpoint
    from arc_halo.training.run import TrainingRun
else:
    _Trainer = object

_STATE_FILE = "trainer_state.json"


class ArcHaloCallback(TrainerCallback):
    """Records what a Trainer logs, and how far it shall go; and its checkpoints, beside the folders it writes.

    Names are the Trainer's; values of an evaluation are in scope ``validation`` without ``eval_``, times in ``system``.

    Parameters
    ----------
    run
        An open run. Its end, whatever ends it, is written by `training_run`.
    checkpoints
        Also save each checkpoint of the Trainer into the database. `ArcHaloTrainerMixin` does that by itself.

    Examples
    --------
    >>> with training_run(db, model="lm") as run:  # doctest: +SKIP
    ...     Trainer(model, args, train_dataset=data, callbacks=[ArcHaloCallback(run)]).train()
    """

    def __init__(self, run: TrainingRun, *, checkpoints: bool = True) -> None:
        self.run = run
        self.checkpoints = checkpoints

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Say how far it shall go, and with which arguments, where the run does not say so itself."""
        if not state.is_world_process_zero:
            return
        run_id, config = self.run.training_session_id, json.loads(args.to_json_string())
        planned = {"total_steps": state.max_steps, "total_epochs": float(state.num_train_epochs)}

        def tell(session: Session) -> None:
            row = TrainingSession
            values = {name: func.coalesce(getattr(row, name), value) for name, value in planned.items()}
            session.execute(update(row).where(row.id == run_id).values(values))
            session.execute(update(row).where(row.id == run_id, row.config == {}).values(config=config))

        self.run.db.transaction(tell)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:  # noqa: ARG002
        """Record the numbers among them."""
        if state.is_world_process_zero:
            for scope, metrics in split_logs(logs):
                self.run.log(metrics, state.global_step, epoch=state.epoch, scope=scope)

    def on_save(self, args: Any, state: Any, control: Any, **objects: Any) -> None:  # noqa: ARG002
        """Save a checkpoint beside the folder that was written."""
        if not self.checkpoints or not state.is_world_process_zero:
            return
        parts = objects["model"], objects["optimizer"], objects["lr_scheduler"]
        # The Trainer shows callbacks no scaler, but the optimizer that accelerate has wrapped holds it.
        scaler = getattr(objects["optimizer"], "scaler", None)
        captured = capture_state(*parts, scaler, extra={TRAINER: describe_trainer(state)})
        self.run.save_checkpoint(
            captured,
            state.global_step,
            epoch=state.epoch,
            checkpoint_type="weights" if args.save_only_model else "full",
            is_best=_is_best(state),
        )


def _is_best(state: Any) -> bool | None:
    """None where the Trainer compares nothing: then the run's goals say."""
    return None if state.best_metric is None else state.best_global_step == state.global_step


@dataclass(frozen=True, slots=True)
class _Resuming:
    """A checkpoint, and the folder that stands for it where the Trainer wants a path."""

    loaded: LoadedCheckpoint
    folder: str


class ArcHaloTrainerMixin(_Trainer):
    """Lets a Trainer save to the database in the place of folders, and go on from there.

    ``train()`` goes on from what the run was resumed from; a path still resumes from a folder. The Trainer's own
    order of data, callbacks with state, ``load_best_model_at_end`` and ``save_only_model`` work as with folders, and
    ``save_total_limit`` deletes from the database. The run holds the log: what the Trainer's state has of it after
    resuming is the stitched history.

    Parameters
    ----------
    run
        An open run.
    save_in_background
        Copy the state and save it beside training; at most one is under way.

    Raises
    ------
    ConfigurationError
        The Trainer trains in several processes, shards its model, or is to push folders.

    Examples
    --------
    >>> class DatabaseTrainer(ArcHaloTrainerMixin, Trainer): ...
    >>> with training_run(db, model="lm", name="tune") as run:  # doctest: +SKIP
    ...     DatabaseTrainer(model, args, train_dataset=data, run=run).train()
    """

    def __init__(self, *args: Any, run: TrainingRun, save_in_background: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.run = run
        self.save_in_background = save_in_background
        self._resuming: _Resuming | None = None
        _refuse_unknown_ways(self)
        if not any(isinstance(each, ArcHaloCallback) for each in self.callback_handler.callbacks):
            self.add_callback(ArcHaloCallback(run, checkpoints=False))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from the checkpoint that the run goes on from if there is one.

        Parameters
        ----------
        resume_from_checkpoint
            None: as the run says; True: there must be one; False: from the beginning; a path: from a folder.

        Raises
        ------
        CheckpointNotFound
            There must be one, and there is none.
        StateMismatch
            The checkpoint is of another model, or of other data, batch sizes or accumulation.
        """
        if isinstance(resume_from_checkpoint, str) or resume_from_checkpoint is False:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        loaded = self.run.load_checkpoint()
        if loaded is None:
            if resume_from_checkpoint:
                raise CheckpointNotFound(f"{self.run} resumes nothing; save a checkpoint first, or train() without it")
            return super().train(None, *args, **kwargs)
        with self._standing_for(loaded) as folder:
            return super().train(folder, *args, **kwargs)

    @contextmanager
    def _standing_for(self, loaded: LoadedCheckpoint) -> Iterator[str]:
        """A folder with the one file that the Trainer opens by itself; the rest comes through its hooks."""
        self._refuse_other_data(loaded)
        with self.run.db.session() as session:
            logs = read_log_history(session, loaded.attempt_id, loaded.step)
        content = json.dumps(trainer_state(loaded, logs, self._train_batch_size))
        with TemporaryDirectory(prefix="arc-halo-resume-") as folder:
            (Path(folder) / _STATE_FILE).write_text(content, encoding="utf-8")
            self._resuming = _Resuming(loaded, folder)
            try:
                yield folder
            finally:
                self._resuming = None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ARG002  (the Trainer saves self.model, too)
        if trial is not None:
            raise ConfigurationError("trials of a search are runs of their own: open a training_run for each")
        self.store_flos()
        step = self.state.global_step
        if _is_best(self.state):
            self.state.best_model_checkpoint = f"{BEST}{step}"
        _update_callback_states(self)
        scaler = getattr(self.accelerator, "scaler", None)
        extra = {TRAINER: describe_trainer(self.state)}
        state = capture_state(self.model, self.optimizer, self.lr_scheduler, scaler, extra=extra)
        state.data_loader = self._data() | {"step": step, "epoch": self.state.epoch}
        self.run.save_checkpoint(
            state,
            step,
            epoch=self.state.epoch,
            checkpoint_type="weights" if self.args.save_only_model else "full",
            is_best=_is_best(self.state),
            wait=not self.save_in_background,
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if (loaded := self._loaded(resume_from_checkpoint)) is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            # The Trainer makes its optimizer behind this, over what is trainable then.
            restore_state(loaded, self.model if model is None else model, rng=False, frozen=False)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if (loaded := self._loaded(checkpoint)) is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        if loaded.optimizer is not None:
            restore_optimizer(loaded, self.model, self.optimizer, self.lr_scheduler)
        kept = (loaded.extra or {}).get(TRAINER, {}).get("state", {})
        self.state.best_model_checkpoint = kept.get("best_model_checkpoint")

    def _load_scaler(self, checkpoint: str | None) -> None:
        if (loaded := self._loaded(checkpoint)) is None:
            super()._load_scaler(checkpoint)
        elif loaded.scaler is not None:
            self.accelerator.scaler.load_state_dict(from_plain(loaded.scaler))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if (loaded := self._loaded(checkpoint)) is None:
            super()._load_rng_state(checkpoint)
        elif loaded.rng is not None:
            restore_rng(loaded.rng)

    def _loaded(self, folder: str | None) -> LoadedCheckpoint | None:
        return self._resuming.loaded if self._resuming is not None and folder == self._resuming.folder else None

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if not best.startswith(BEST):
            super()._load_best_model()
            return
        self.run.flush()
        step = int(best.removeprefix(BEST))
        with self.run.db.session() as session:
            found = checkpoint_on_line(session, self.run.attempt_id, step)
            if found is None or found.step != step:
                raise CheckpointNotFound(f"the best checkpoint of {self.run}, of step {step}, is not there any more")
            loaded = load_checkpoint(session, found, components=["weights", "other"])
        restore_state(loaded, self.model, rng=False)

    def _data(self) -> dict[str, Any]:
        """What makes the order of batches, which the position is counted in."""
        size = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        accumulation = self.args.gradient_accumulation_steps
        return {"examples": size, "batch_size": self._train_batch_size, "accumulation": accumulation, "seed": seed}

    def _refuse_other_data(self, loaded: LoadedCheckpoint) -> None:
        now, before = self._data(), loaded.data_loader or {}
        other = [name for name, value in now.items() if before.get(name, value) != value]
        if other and not self.args.ignore_data_skip:
            told = ", ".join(f"{name} {now[name]} in the place of {before[name]}" for name in other)
            raise StateMismatch(
                f"the data would not go on where they were at step {loaded.step}: {told}; train as before, or set "
                "ignore_data_skip=True to begin with the data of another epoch"
            )


def _update_callback_states(trainer: Any) -> None:
    states: dict[str, list[Any]] = {}
    for each in [*trainer.callback_handler.callbacks, trainer.control]:
        if isinstance(each, ExportableState):
            states.setdefault(type(each).__name__, []).append(each.state())
    # As the Trainer reads it: one state by itself, several of one class as a list.
    trainer.state.stateful_callbacks = {name: found[0] if len(found) == 1 else found for name, found in states.items()}


def _refuse_unknown_ways(trainer: Any) -> None:
    unknown = {
        "trains in several processes": trainer.args.world_size > 1,
        "shards the model by FSDP": trainer.is_fsdp_enabled,
        "shards the model by DeepSpeed": trainer.is_deepspeed_enabled,
        "pushes its folders to the hub": trainer.args.push_to_hub,
    }
    for way, is_so in unknown.items():
        if is_so:
            raise ConfigurationError(
                f"the Trainer {way}, which checkpoints in the database do not do; train with the stock Trainer and "
                "ArcHaloCallback(run, checkpoints=False), or with torch.distributed.checkpoint and arc_halo's writer"
            )

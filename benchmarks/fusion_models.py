"""Three small language models, each trained on text of a kind of its own that every installation has."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTEXT = 128
_MAX_FILE = 60_000
PARTS = ("train", "fit", "test")
_SHARES = (0.8, 0.9)


@dataclass(frozen=True)
class Shape:
    """How large a model is; they cost differently, so that a cascade has something to save."""

    layers: int
    heads: int
    width: int


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    vocabulary: int
    shapes: dict[str, Shape]
    text_nbytes: int
    steps: int
    batch: int
    windows: int
    operations: int


SIZES = {
    "tiny": Size(
        vocabulary=400,
        shapes={"english": Shape(1, 2, 16), "python": Shape(1, 2, 24), "cpp": Shape(1, 2, 32)},
        text_nbytes=500_000, steps=8, batch=4, windows=3, operations=8,
    ),
    "full": Size(
        vocabulary=1024,
        shapes={"english": Shape(2, 2, 64), "python": Shape(3, 4, 112), "cpp": Shape(4, 4, 160)},
        text_nbytes=4_000_000, steps=300, batch=16, windows=120, operations=300,
    ),
}  # fmt: skip


def texts(domain: str) -> Iterator[str]:
    """English: the topics of Python's own help; python: its standard library; cpp: the headers of torch."""
    if domain == "english":
        yield from (topics[name] for name in sorted(topics))
        return
    torch_folder = Path(str(find_spec("torch").origin)).parent  # type: ignore[union-attr]
    folder = Path(sysconfig.get_path("stdlib")) if domain == "python" else torch_folder / "include" / "ATen"
    for path in sorted(folder.glob("*.py" if domain == "python" else "**/*.h")):
        yield path.read_text(encoding="utf-8", errors="replace")[:_MAX_FILE]


def split(domain: str, nbytes: int) -> dict[str, str]:
    """Text of a domain, whole files in one part each, by a hash of what is in them."""
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    room = nbytes
    for each in texts(domain):
        if room <= 0:
            break
        place = int.from_bytes(blake2b(each.encode(), digest_size=4).digest(), "big") / 2**32
        parts[PARTS[sum(place >= share for share in _SHARES)]].append(each)
        room -= len(each)
    return {part: "\n".join(chosen) for part, chosen in parts.items()}


def train_tokenizer(corpora: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """One byte-level BPE for all three."""
    tokenizer = ByteLevelBPETokenizer()
    lines = [line for corpus in corpora for line in corpus.splitlines(keepends=True)]
    tokenizer.train_from_iterator(lines, vocab_size=vocabulary, min_frequency=2, special_tokens=["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="<end>")  # noqa: SLF001


def tokens_of(tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    """Token ids of a text, encoded line by line."""
    lines = tokenizer(text.splitlines(keepends=True), add_special_tokens=False)["input_ids"]
    return np.fromiter((each for line in lines for each in line), np.int64)


def train(shape: Shape, size: Size, tokens: np.ndarray, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 of that shape, trained for a fixed number of steps by AdamW with a warm-up and a cosine."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=size.vocabulary, n_positions=2 * CONTEXT, n_embd=shape.width, n_layer=shape.layers,
        n_head=shape.heads, bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    warmed = max(1, size.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warmed) * (0.55 + 0.45 * float(np.cos(np.pi * step / size.steps))),
    )
    random = np.random.default_rng(seed)
    for _ in range(size.steps):
        starts = random.integers(len(tokens) - CONTEXT - 1, size=size.batch)
        batch = torch.from_numpy(np.stack([tokens[start : start + CONTEXT] for start in starts]))
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def windows_of(tokens: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Stretches of text that do not overlap, of shape [count, CONTEXT]."""
    places = np.arange(len(tokens) // CONTEXT)
    chosen = np.random.default_rng(seed).permutation(places)[:count]
    return np.stack([tokens[place * CONTEXT : (place + 1) * CONTEXT] for place in sorted(chosen)])


def log_probabilities(model: GPT2LMHeadModel, windows: np.ndarray) -> np.ndarray:
    """Of each next token, float32 of shape [windows * (CONTEXT - 1), vocabulary], in nats."""
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(windows)).logits[:, :-1]
        scores = torch.log_softmax(logits.float(), -1)
    return scores.reshape(-1, scores.shape[-1]).numpy()


def cost_of(model: GPT2LMHeadModel) -> float:
    """Of one token: parameters that take part in it, in millions."""
    position = model.transformer.wpe.weight.numel()
    return (model.num_parameters() - position) / 1e6

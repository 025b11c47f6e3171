"""Train the small language model that ships as `arc_halo/demo_model`, from text every Python installation has.

    pip install -e '.[transformers]'
    python examples/train_demo_model.py my_demo_model                # ten minutes on one core
    python examples/train_demo_model.py my_demo_model --steps 2      # a smoke test

The text is the standard library's own: the `help()` topics, the docstrings, and the sources, read from the running
interpreter. No network is used. The folder it writes is an ordinary Hugging Face model, with a card that states what
was measured.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import platform
import sysconfig
import time
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from string import Template
from typing import TYPE_CHECKING, NamedTuple

import tokenizers
import torch
import transformers
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

VOCABULARY, CONTEXT, BATCH, LEARNING_RATE = 4096, 128, 8, 3e-3
BEGIN, END = "<|begin|>", "<|end|>"
BEGIN_ID, END_ID = 0, 1
# Tests are code about code, encodings and turtledemo are tables and drawings: none of them teaches prose about Python.
OMITTED = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "encodings",
    "pydoc_data",
}
BUILD_RECORDS = ("config-", "_sysconfigdata")  # written by the build: they name the machine and differ on each
HELD_OUT_SHARE = 20  # one module or topic in twenty is never trained on
SOURCE_ROWS = 2  # of the BATCH rows: sources teach which names are alike, but documentation is what should be continued
SHOWN_TOKENS = ("list", "int", "True", "ValueError", "first", "server", "may", "two")
PROMPTS = ("Return a list of", "The list type", "Raise ValueError if", "json.loads(s)\n\n")
CARD = Template("""\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# Arc-Halo demo model

A Llama of $parameters parameters in bfloat16, small enough to ship inside a Python package. It is the default input of
`arc-halo demo`: a real trained model with grouped-query attention, tied embeddings and a byte-level BPE tokenizer of
$vocabulary tokens. It writes sentences in the manner of Python's documentation. They are often grammatical, seldom
true: do not use it to answer anything.

## Training

- Text: the Python standard library as every installation carries it: `help()` topics, docstrings, and sources (tests,
  IDLE, encodings, build records and the like left out). One module or topic in twenty is held out. Nothing else
  was used.
- The text is under the PSF License Agreement version 2. The weights are under Apache-2.0, like the package.
- $documentation_tokens tokens of documentation, $source_tokens of sources. Each step took $batch windows of
  $context tokens, $source_rows of them from sources: $steps steps, $seen tokens seen.
- AdamW (betas 0.9 and 0.95, weight decay 0.1), gradients clipped at norm 1, learning rate up to $learning_rate in the
  first twentieth of the steps, then down in a cosine. Seed $seed, one thread, $minutes minutes on $processor.
- Python $python, torch $torch, transformers $transformers, tokenizers $tokenizers. Another Python version
  has another text, and gives other weights.
- SHA-256 of the text: `$corpus`

To train it again: `python examples/train_demo_model.py FOLDER --steps $steps --seed $seed`.

## Measured

The weights as saved, windows of $context tokens of documentation.

| | nats per token | perplexity |
|---|---|---|
| training text, evenly spaced sample | $train_loss | $train_perplexity |
| held-out modules and topics, $held_out_tokens tokens | $held_out_loss | $held_out_perplexity |
| unigram baseline on the same held-out tokens | $unigram_loss | $unigram_perplexity |

Nearest tokens, by cosine of the embeddings (`Ġ` is a leading space, which the tokens of the first column have, too):

$nearest

First sample for each prompt, none chosen, with the settings of `generation_config.json` and the seed above:

$continuations

## Files

| file | bytes | SHA-256 |
|---|---|---|
$files
""")


class Document(NamedTuple):
    """A text, the module or topic it comes from, and whether it is a source file."""

    origin: str
    text: str
    is_source: bool = False

    @property
    def held_out(self) -> bool:
        """Whole modules are held out: docstrings of one module resemble each other."""
        return zlib.crc32(self.origin.encode()) % HELD_OUT_SHARE == 0


def unwrapped(text: str) -> str:
    """Join the lines of each paragraph of prose; code and lists keep their lines."""
    paragraphs = []
    for paragraph in text.expandtabs().split("\n\n"):
        lines = [line.rstrip() for line in paragraph.strip("\n").split("\n")]
        indents = {len(line) - len(line.lstrip()) for line in lines}
        is_prose = len(indents) == 1 and max(indents) < 3 and not lines[0].lstrip().startswith(">>>")
        paragraphs.append(" ".join(line.strip() for line in lines) if is_prose else "\n".join(lines))
    return "\n\n".join(paragraphs)


def docstrings(tree: ast.AST, name: str) -> Iterator[str]:
    """Each documented class and function below `tree`: "qualified.name(arguments)", a blank line, the docstring."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            qualified = f"{name}.{node.name}"
            arguments = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
            if docstring := ast.get_docstring(node):
                yield f"{qualified}{arguments}\n\n{unwrapped(docstring)}"
            yield from docstrings(node, qualified)
        else:
            yield from docstrings(node, name)


def standard_library() -> Iterator[Document]:
    """Everything read, in an order that depends only on the Python version."""
    for topic, text in sorted(topics.items()):
        yield Document(topic, unwrapped(text))
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if OMITTED & set(relative.parts) or relative.parts[0].startswith(BUILD_RECORDS):
            continue
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources hold invalid escapes
            tree = ast.parse(source)
        if docstring := ast.get_docstring(tree):
            yield Document(module, f"{module}\n\n{unwrapped(docstring)}")
        for text in docstrings(tree, module):
            yield Document(module, text)
        yield Document(module, source, is_source=True)


def train_tokenizer(texts: Iterable[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE as in Llama 3: any text can be encoded, and every prompt begins with BEGIN."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN, END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, BEGIN_ID)]
    )
    return tokenizer


@dataclass(frozen=True)
class Corpus:
    """Three streams of token ids, the tokenizer that made them, and the digest of the text."""

    tokenizer: tokenizers.Tokenizer
    documentation: torch.Tensor
    sources: torch.Tensor
    held_out: torch.Tensor
    sha256: str


def read_corpus() -> Corpus:
    """Read, deduplicate and encode the text; tokenizer and training streams never see a held-out document."""
    documents = list({document.text: document for document in standard_library()}.values())
    training = [document for document in documents if not document.held_out]
    tokenizer = train_tokenizer(document.text for document in training if not document.is_source)

    def encoded(selected: Iterable[Document]) -> torch.Tensor:
        encodings = tokenizer.encode_batch([document.text for document in selected])
        return torch.tensor([token for encoding in encodings for token in (*encoding.ids, END_ID)])

    return Corpus(
        tokenizer=tokenizer,
        documentation=encoded(document for document in training if not document.is_source),
        sources=encoded(document for document in training if document.is_source),
        held_out=encoded(document for document in documents if document.held_out and not document.is_source),
        sha256=hashlib.sha256("\0".join(document.text for document in documents).encode()).hexdigest(),
    )


def new_model() -> transformers.LlamaForCausalLM:
    """Llama with grouped-query attention and tied embeddings: 1.26 million parameters, 2.5 MB in bfloat16."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=BEGIN_ID,
        eos_token_id=END_ID,
    )
    return transformers.LlamaForCausalLM(config)


def train(model: transformers.LlamaForCausalLM, corpus: Corpus, steps: int) -> None:
    """Random windows of CONTEXT tokens, BATCH at a time, printing the loss twenty times on the way."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    streams = [corpus.documentation] * (BATCH - SOURCE_ROWS) + [corpus.sources] * SOURCE_ROWS
    every, total, started = max(1, steps // 20), 0.0, time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        starts = [int(torch.randint(len(stream) - CONTEXT, ())) for stream in streams]
        batch = torch.stack([stream[at : at + CONTEXT] for stream, at in zip(streams, starts, strict=True)])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        total += loss.item()
        if step % every == 0:
            speed = step * batch.numel() / (time.monotonic() - started)
            print(f"step {step:5d}/{steps}  loss {total / every:.3f}  {speed:,.0f} tokens/s", flush=True)
            total = 0.0


@torch.no_grad()
def mean_loss(model: transformers.LlamaForCausalLM, tokens: torch.Tensor, windows: int) -> float:
    """Cross-entropy in nats per token over at most `windows` evenly spaced windows of CONTEXT tokens."""
    rows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    rows = rows[:: max(1, len(rows) // windows)][:windows]
    model.eval()
    return sum(model(input_ids=row[None], labels=row[None]).loss.item() for row in rows) / len(rows)


def unigram_loss(training: torch.Tensor, held_out: torch.Tensor) -> float:
    """Nats per token of the model that knows only how often each token occurs (add-one smoothing)."""
    counts = torch.bincount(training, minlength=VOCABULARY).double() + 1
    return -(counts / counts.sum()).log()[held_out].mean().item()


def nearest_tokens(model: transformers.LlamaForCausalLM, tokenizer: tokenizers.Tokenizer) -> str:
    """A Markdown table of the tokens whose embeddings are closest by cosine."""
    embeddings = normalize(model.get_input_embeddings().weight.detach().float())
    lines = ["| token | nearest |", "|---|---|"]
    for word in SHOWN_TOKENS:
        token = tokenizer.token_to_id(f"Ġ{word}")
        nearest = (embeddings @ embeddings[token]).topk(7).indices.tolist()[1:]
        lines.append(f"| `{word}` | {', '.join(f'`{tokenizer.id_to_token(other)}`' for other in nearest)} |")
    return "\n".join(lines)


def continuations(model: transformers.LlamaForCausalLM, tokenizer: transformers.PreTrainedTokenizerFast) -> str:
    """The first continuation of each prompt, sampled with the folder's generation config, in Markdown."""
    texts = []
    for prompt in PROMPTS:
        output = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=40)
        texts.append(f"```text\n{tokenizer.decode(output[0], skip_special_tokens=True)}\n```")
    return "\n\n".join(texts)


def save(model: transformers.LlamaForCausalLM, tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """Write bfloat16 weights, configs and tokenizer. `model` is cast in place: read it back to go on."""
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=BEGIN_ID,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
        do_sample=True,
        temperature=0.7,
        top_k=40,
        repetition_penalty=1.1,
    )
    model.bfloat16().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def measurements(folder: Path, corpus: Corpus) -> dict[str, str]:
    """What the card says of the model in `folder`, read back from the disk as its users will."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    losses = {
        "train": mean_loss(model, corpus.documentation, windows=len(corpus.held_out) // CONTEXT),
        "held_out": mean_loss(model, corpus.held_out, windows=len(corpus.held_out) // CONTEXT),
        "unigram": unigram_loss(corpus.documentation, corpus.held_out),
    }
    return {
        **{f"{name}_loss": f"{loss:.3f}" for name, loss in losses.items()},
        **{f"{name}_perplexity": f"{math.exp(loss):,.1f}" for name, loss in losses.items()},
        "parameters": f"{model.num_parameters():,}",
        "nearest": nearest_tokens(model, corpus.tokenizer),
        "continuations": continuations(model, transformers.AutoTokenizer.from_pretrained(folder)),
    }


def file_rows(folder: Path) -> str:
    """A Markdown row for each file but the card: name, size, digest."""
    rows = []
    for path in sorted(folder.iterdir()):
        if path.name != "README.md":
            content = path.read_bytes()
            rows.append(f"| `{path.name}` | {len(content):,} | `{hashlib.sha256(content).hexdigest()}` |")
    return "\n".join(rows)


def write_card(folder: Path, corpus: Corpus, *, steps: int, seed: int, minutes: float) -> None:
    """Write README.md: how the model was made, and what it can and cannot do."""
    card = CARD.substitute(
        measurements(folder, corpus),
        vocabulary=f"{VOCABULARY:,}",
        steps=steps,
        batch=BATCH,
        context=CONTEXT,
        source_rows=SOURCE_ROWS,
        seen=f"{steps * BATCH * CONTEXT:,}",
        documentation_tokens=f"{len(corpus.documentation):,}",
        source_tokens=f"{len(corpus.sources):,}",
        held_out_tokens=f"{len(corpus.held_out):,}",
        learning_rate=LEARNING_RATE,
        seed=seed,
        minutes=f"{minutes:.1f}",
        processor=platform.machine(),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        tokenizers=tokenizers.__version__,
        corpus=corpus.sha256,
        files=file_rows(folder),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(card)


def main() -> None:
    """Train, save, measure what was saved, and write the card."""
    parser = argparse.ArgumentParser(description="Train the demo's language model on the standard library's text.")
    parser.add_argument("folder", type=Path, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=3500, help="optimizer steps of 1,024 tokens (default: 3500)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums in a fixed order: the same machine gives the same weights, at half the speed
    torch.use_deterministic_algorithms(mode=True)
    torch.manual_seed(arguments.seed)

    corpus = read_corpus()
    model = new_model()
    print(f"{model.num_parameters():,} parameters, {len(corpus.documentation) + len(corpus.sources):,} training tokens")
    started = time.monotonic()
    train(model, corpus, arguments.steps)
    minutes = (time.monotonic() - started) / 60
    arguments.folder.mkdir(parents=True, exist_ok=True)
    save(model, corpus.tokenizer, arguments.folder)
    torch.manual_seed(arguments.seed)
    write_card(arguments.folder, corpus, steps=arguments.steps, seed=arguments.seed, minutes=minutes)


if __name__ == "__main__":
    main()

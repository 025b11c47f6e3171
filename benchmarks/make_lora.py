"""A LoRA fine-tune: the sentence encoder frozen, adapters of rank 8 trained on its queries and values.

Needs torch, transformers and the package of the model, as `make_family.py`, whose text and loss it uses. The adapters
are those of https://arxiv.org/abs/2106.09685: beside each frozen matrix the product of two narrow ones.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from make_family import BATCH, CHECKPOINTS, SEED, STEPS, embed, find_origin, sentence_pairs

RANK, LEARNING_RATE = 8, 2e-4


def make_lora(folder: Path, checkpoints: int = CHECKPOINTS, steps: int = STEPS) -> None:
    """Write ``<folder>/lora/<number>.safetensors`` and ``<folder>/lora-adam/<number>.safetensors``."""
    import torch  # noqa: PLC0415  an extra, for this script alone
    from safetensors.torch import save_file  # noqa: PLC0415
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415

    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    origin = find_origin()
    tokenizer, model = AutoTokenizer.from_pretrained(origin), AutoModel.from_pretrained(origin, dtype=torch.float32)
    adapters = _adapt(model)
    optimizer = torch.optim.AdamW(adapters.values(), lr=LEARNING_RATE)
    pairs = list(sentence_pairs())
    chosen = torch.Generator().manual_seed(SEED)
    model.train()
    for each in ("lora", "lora-adam"):
        (folder / each).mkdir(parents=True, exist_ok=True)
    for number in range(1, checkpoints + 1):
        for _ in range(steps):
            batch = [pairs[i] for i in torch.randint(len(pairs), (BATCH,), generator=chosen).tolist()]
            left, right = (embed(model, tokenizer, [pair[side] for pair in batch]) for side in (0, 1))
            loss = torch.nn.functional.cross_entropy(20 * left @ right.T, torch.arange(BATCH))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        weights = {name: value.detach().contiguous() for name, value in adapters.items()}
        states = {
            f"{key}.{name}": optimizer.state[value][key].contiguous()
            for name, value in adapters.items()
            for key in ("exp_avg", "exp_avg_sq")
        }
        save_file(weights, folder / "lora" / f"{number}.safetensors")
        save_file(states, folder / "lora-adam" / f"{number}.safetensors")


def _adapt(model):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  torch is an extra
    """Freeze the model and put a pair of narrow matrices beside each query and value; returns them by name."""
    import torch  # noqa: PLC0415

    model.requires_grad_(requires_grad=False)
    adapters = {}
    for name, module in list(model.named_modules()):
        if not name.endswith((".query", ".value")):
            continue
        down = torch.nn.Parameter(torch.randn(RANK, module.in_features) / RANK)
        up = torch.nn.Parameter(torch.zeros(module.out_features, RANK))
        adapters |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        module.register_forward_hook(lambda _, given, out, a=down, b=up: out + given[0] @ a.T @ b.T)
    return adapters


def main() -> None:
    """Make it, and say how long that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="made if it is not there")
    parser.add_argument("--checkpoints", type=int, default=CHECKPOINTS)
    parser.add_argument("--steps", type=int, default=STEPS, help="of training from one checkpoint to the next")
    options = parser.parse_args()
    began = time.perf_counter()
    make_lora(options.folder, options.checkpoints, options.steps)
    print(f"{options.checkpoints} checkpoints in {options.folder}, in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

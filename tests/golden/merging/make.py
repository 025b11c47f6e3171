"""Write what mergekit makes of small tensors and of small models; run where that is installed, not by the tests.

    python -m venv venv && . venv/bin/activate
    pip install torch==2.13.0 mergekit==0.1.5
    python tests/golden/merging/make.py

Written with mergekit 0.1.5, torch 2.13.0 (CPU), transformers 5.24.0, numpy 2.4.6; `versions.json` has those of the last
run. Nothing of mergekit is in here but the numbers that it gave.
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import mergekit.sparsify
import numpy as np
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods.base import TensorEntry, TensorGroup, TensorMetadata
from mergekit.merge_methods.registry import get
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
SHAPE = (13, 37)
WEIGHTS = [0.9, 0.4, -0.3]
DENSITIES = [0.53, 0.31, 0.8]
GAMMAS = [0.07, 0.01, 0.02]
MANY = [0.9, 0.3, 0.1]
VECTORS = {"weight": WEIGHTS, "density": DENSITIES}
# One entry is one case: method, what is said to it.
CASES = {
    "linear": ("linear", {"weight": [0.7, *WEIGHTS]}),
    "linear_sum": ("linear", {"weight": [0.7, *WEIGHTS], "normalize": False}),
    "slerp": ("slerp", {"t": 0.35}),
    "slerp_collinear": ("slerp", {"t": 0.35}),
    "task_arithmetic": ("task_arithmetic", {"weight": WEIGHTS, "lambda": 0.7}),
    "task_arithmetic_mean": ("task_arithmetic", {"weight": WEIGHTS, "normalize": True}),
    "ties": ("ties", VECTORS),
    "ties_sum": ("ties", VECTORS | {"normalize": False, "lambda": 1.3}),
    "ties_rescaled": ("ties", VECTORS | {"rescale": True}),
    "ties_sparse": ("ties", {"weight": WEIGHTS, "density": [0.0005, 0.0, 1.0]}),
    "dare_ties": ("dare_ties", VECTORS),
    "dare_linear": ("dare_linear", VECTORS | {"lambda": 0.5}),
    "dare_linear_unscaled": ("dare_linear", VECTORS | {"rescale": False}),
    "breadcrumbs": ("breadcrumbs", VECTORS | {"gamma": GAMMAS}),
    "breadcrumbs_many": ("breadcrumbs", VECTORS | {"gamma": MANY, "normalize": True}),
    "breadcrumbs_ties": ("breadcrumbs_ties", VECTORS | {"gamma": GAMMAS}),
}


def inputs(seed: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """A base and three models near it."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(SHAPE, generator=generator) * 0.02
    if dtype == torch.bfloat16:  # of many magnitudes, else too few of the differences differ
        base *= torch.exp(4 * torch.randn(SHAPE, generator=generator))
    return [
        base.to(dtype),
        *((base + torch.randn(SHAPE, generator=generator) * scale).to(dtype) for scale in (0.004, 0.01, 0.007)),
    ]


def has_ties(tensors: list[torch.Tensor]) -> bool:
    """Whether equal magnitudes lie on both sides of a threshold: which of those mergekit keeps is not defined."""
    base, *others = (each.float() for each in tensors)
    count = base.numel()
    for index, (other, density) in enumerate(zip(others, DENSITIES, strict=True)):
        ordered = (other - base).abs().reshape(-1).sort().values
        kept = int(density * count)
        for many in (GAMMAS[index], MANY[index], 0.0):
            first = max(0, count - kept - int(many * count))
            for bound in (first, first + kept):
                if 0 < bound < count and ordered[bound - 1] == ordered[bound]:
                    return True
    return False


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """An array; numpy files have no bfloat16, so of that the bits."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def merge(method: str, tensors: list[torch.Tensor], parameters: dict, **dtypes: torch.dtype) -> torch.Tensor:
    """What mergekit makes of tensors of which the first is the base."""
    entries = tuple(TensorEntry(id=index, tensor=tensor, is_base=index == 0) for index, tensor in enumerate(tensors))
    group = TensorGroup(entries=entries, metadata=TensorMetadata(name="weight"))
    (result,) = get(method)((group,), parameters=parameters, **dtypes)
    return result


def make_arrays(dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Inputs, results and drawn masks of all cases."""
    seed = next(seed for seed in range(10_000) if not has_ties(inputs(seed, dtype)))
    tensors = inputs(seed, dtype)
    far = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed + 1)).mul(0.02).to(dtype)
    found = {"base": to_numpy(tensors[0]), "far": to_numpy(far)}
    found |= {f"model{index}": to_numpy(each) for index, each in enumerate(tensors[1:])}
    draw = torch.bernoulli
    for case, (method, parameters) in CASES.items():
        masks: list[torch.Tensor] = []

        def drawn(*arguments, _masks=masks, **named):
            _masks.append(draw(*arguments, **named))
            return _masks[-1]

        torch.bernoulli = mergekit.sparsify.torch.bernoulli = drawn
        torch.manual_seed(7)
        given = tensors
        if method == "slerp":
            given = [tensors[0], far if case == "slerp" else tensors[1]]
        result = merge(method, given, parameters, dtype=torch.float32, out_dtype=dtype)
        found[f"{case}.result"] = to_numpy(result)
        for index, mask in enumerate(masks):
            found[f"{case}.mask{index}"] = np.packbits(mask.numpy().astype(bool))
        if dtype == torch.bfloat16 and not masks:
            native = merge(method, given, parameters)
            found[f"{case}.native"] = to_numpy(native)
    torch.bernoulli = draw
    return found


LAYERS = 4
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 11,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip


def model(seed: int, around: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """A small llama, or one near another."""
    shapes = {"model.embed_tokens.weight": (11, 8), "model.norm.weight": (8,), "lm_head.weight": (11, 8)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{part}_proj.weight": (8, 8) for part in "qkvo"}
        shapes |= {f"{at}.mlp.{part}_proj.weight": (12, 8) for part in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (8, 12)}
        shapes |= {f"{at}.{part}_layernorm.weight": (8,) for part in ("input", "post_attention")}
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}
    return noise if around is None else {name: around[name] + noise[name] * 0.3 for name in shapes}


def make_models() -> None:
    """Recipes of whole models: gradients, filters, slices, defaults."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        base = model(1)
        models = {"base": base, "a": model(2, base), "b": model(3, base)}
        for name, tensors in models.items():
            (root / name).mkdir()
            save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
            (root / name / "config.json").write_text(json.dumps(CONFIG))
            save_file(tensors, HERE / f"model_{name}.safetensors", metadata={"format": "pt"})
        (HERE / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
        for path in sorted(HERE.glob("*.yml")):
            document = yaml.safe_load(path.read_text())
            text = yaml.dump(document)
            for name in models:
                text = text.replace(f"{name}@1", str(root / name))
            out = root / path.stem
            run_merge(
                MergeConfiguration.model_validate(yaml.safe_load(text)),
                str(out),
                options=MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True),
            )
            merged: dict[str, torch.Tensor] = {}
            for file in out.glob("*.safetensors"):
                merged |= load_file(file)
            save_file(merged, HERE / f"{path.stem}.safetensors")


if __name__ == "__main__":
    for chosen, stem in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        np.savez_compressed(HERE / f"{stem}.npz", **make_arrays(chosen))
    make_models()
    cases = {case: {"method": method, "parameters": parameters} for case, (method, parameters) in CASES.items()}
    (HERE / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    versions = {each: version(each) for each in ("mergekit", "torch", "transformers", "numpy")}
    (HERE / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")

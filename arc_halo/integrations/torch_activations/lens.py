"""Activations under the names of TransformerLens, where what it calls so is the very same tensor."""

from __future__ import annotations

import re
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

# Outputs of modules by the end of their names. Norms and projections of heads are left out: TransformerLens folds,
# scales or reshapes those. Source: its HookedTransformer, https://transformerlensorg.github.io/TransformerLens.
_GPT2: Final = MappingProxyType(
    {
        "": "hook_resid_post",
        ".attn": "hook_attn_out",
        ".mlp": "hook_mlp_out",
        ".mlp.c_fc": "mlp.hook_pre",
        ".mlp.act": "mlp.hook_post",
    }
)
_LLAMA: Final = MappingProxyType(
    {
        "": "hook_resid_post",
        ".self_attn": "hook_attn_out",
        ".mlp": "hook_mlp_out",
        ".mlp.gate_proj": "mlp.hook_pre",
        ".mlp.up_proj": "mlp.hook_pre_linear",
    }
)
_BLOCK: Final = re.compile(r"(?:(?:transformer|model)\.)?(?P<list>h|layers)\.(?P<index>\d+)(?P<part>(?:\.\w+)*)")
_EMBEDDING: Final = re.compile(r"(?:(?:transformer|model)\.)?(?P<part>wte|drop|embed_tokens)")
_EMBEDDINGS: Final = MappingProxyType(
    {
        "wte": ("hook_embed",),
        "drop": ("blocks.0.hook_resid_pre",),
        "embed_tokens": ("hook_embed", "blocks.0.hook_resid_pre"),
    }
)
# Others call their modules as Llama does, and put norms or factors between them.
_TYPES: Final = MappingProxyType({"gpt2": "h", "llama": "layers", "mistral": "layers", "qwen2": "layers"})


def to_transformer_lens(
    activations: Mapping[str, torch.Tensor], model: Any = None, *, model_type: str | None = None
) -> Any:
    """TransformerLens' ``ActivationCache`` of activations; the dict that it is made of where that is not installed.

    Names of transformers' GPT-2 and Llama become those of TransformerLens: outputs of blocks, attention, MLPs and
    embeddings, and what went into a block where the output of the one before is there. All else keeps its name.
    Values are those of unprocessed weights (``fold_ln=False, center_writing_weights=False``).

    Parameters
    ----------
    activations
        Tensors by the name of their module, ``[batch, position, width]``.
    model
        What the ``ActivationCache`` shall hold on to; what it computes with weights needs a model of TransformerLens.
    model_type
        As in a config of transformers; else the model's own, else what the names look like. Of types that are not
        ``gpt2``, ``llama``, ``mistral`` or ``qwen2`` all names stay as they are.
    """
    said = model_type or getattr(getattr(model, "config", None), "model_type", None)
    cache_dict: dict[str, torch.Tensor] = {}
    for name, tensor in activations.items():
        for renamed in _renamed(name, activations, said):
            cache_dict[renamed] = tensor
    try:
        lens = import_module("transformer_lens")  # slow to import, and seldom there
    except ImportError:
        return cache_dict
    return lens.ActivationCache(cache_dict, model)


def _renamed(name: str, activations: Mapping[str, torch.Tensor], model_type: str | None) -> tuple[str, ...]:
    block, embedding = _BLOCK.fullmatch(name), _EMBEDDING.fullmatch(name)
    if block is not None and _is_of(model_type, block["list"]):
        hook = (_GPT2 if block["list"] == "h" else _LLAMA).get(block["part"])
        if hook is not None:
            index = int(block["index"])
            return (f"blocks.{index}.{hook}", *_next_block(name, block, index, activations))
    if embedding is not None and _is_of(model_type, "layers" if embedding["part"] == "embed_tokens" else "h"):
        return _EMBEDDINGS[embedding["part"]]
    return (name,)


def _is_of(model_type: str | None, blocks: str) -> bool:
    return model_type is None or _TYPES.get(model_type) == blocks


def _next_block(
    name: str, block: re.Match[str], index: int, activations: Mapping[str, torch.Tensor]
) -> tuple[str, ...]:
    """What the next block takes in, if there is one."""
    following = f"{name[: block.start('index')]}{index + 1}"
    return (f"blocks.{index + 1}.hook_resid_pre",) if not block["part"] and following in activations else ()

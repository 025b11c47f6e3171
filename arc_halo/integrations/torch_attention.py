"""Attention of models of transformers, summarised layer by layer as they run; the extra ``transformers``."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sqlalchemy import func, select

from arc_halo.errors import CacheError, ConfigurationError
from arc_halo.inference.attention.layers import ModelLayers, find_inference_session
from arc_halo.inference.attention.storing import LayerAttention, put_summaries, reduce_attention
from arc_halo.integrations.torch import to_numpy
from arc_halo.schema import AttentionPattern

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.schema import InferenceSession

_EAGER = "eager"


@contextmanager
def attention_visited(model: torch.nn.Module, visit: Callable[[str, np.ndarray], None]) -> Iterator[None]:
    """Hand each layer's attention on as it is computed, as long as the block lasts; nothing of it is kept.

    Within the block the model computes attention by the implementation ``eager``, the one that has weights to show, and
    is in evaluation: with dropout they would share out no whole. Both are then as they were.

    Parameters
    ----------
    model
        Of transformers: a model, or one with a head.
    visit
        Called within the forward pass, with a module's name and ``[heads, queries, keys]`` of a batch of one.

    Raises
    ------
    ConfigurationError
        The model does not say which of its modules attend, or cannot compute attention by ``eager``.
    CacheError
        In the forward pass: the batch is larger, or a module showed no weights.
    """
    modules = attention_modules(model)
    if not modules:
        raise ConfigurationError(
            f"{type(model).__name__} does not say which of its modules attend; give a model of transformers 5 or later"
        )
    hooks = [module.register_forward_hook(_hook(name, index, visit)) for name, (module, index) in modules.items()]
    try:
        with _eager(model), _evaluating(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def capture_attention(
    model: torch.nn.Module,
    input_ids: torch.Tensor | Sequence[int],
    *,
    top_count: int = 8,
    keep_matrices: bool = False,
    **inputs: Any,
) -> dict[str, LayerAttention]:
    """Run a model over one request, and summarise where each of its layers looked.

    Matrices are dropped layer by layer: the most there is at a time is one layer's, whatever the model's depth. The
    model's head is not computed.

    Parameters
    ----------
    input_ids
        ``[tokens]`` or ``[1, tokens]``, without padding.
    top_count
        Keys to keep of each query.
    keep_matrices
        Keep the matrices, too: of a causal model half of each.
    inputs
        Further ones of the model's ``forward``.

    Returns
    -------
    dict
        By the names of modules, in their order.

    Raises
    ------
    CacheError, ConfigurationError
        As in `attention_visited` and `arc_halo.inference.attention.summarise_attention`.

    Examples
    --------
    >>> capture_attention(model, tokenizer("to be or not to be")["input_ids"])  # doctest: +SKIP
    """
    ids = _one_request(input_ids)
    tokens = ids[0].cpu().numpy()
    captured: dict[str, LayerAttention] = {}

    def keep(name: str, matrices: np.ndarray) -> None:
        captured[name] = reduce_attention(
            matrices, tokens, top_count=top_count, keep_matrices=keep_matrices, where=f"module {name!r}"
        )

    body: Any = getattr(model, "base_model", model)
    device = next(model.parameters()).device
    with torch.inference_mode(), attention_visited(model, keep):
        body(input_ids=ids.to(device), **inputs)
    return captured


def record_attention(
    session: Session,
    inference_session: InferenceSession | uuid.UUID,
    model: torch.nn.Module,
    input_ids: torch.Tensor | Sequence[int],
    *,
    request_number: int | None = None,
    top_count: int = 8,
    keep_matrices: bool = False,
    **inputs: Any,
) -> int:
    """Run a model over one request and store where its heads looked. Never commits.

    The model runs before the session is used: with nothing else done in it, no transaction is open meanwhile.

    Parameters
    ----------
    inference_session
        Of the stored model that ``model`` was loaded from: layers are found by the names of modules.
    request_number
        By default the one after the last whose attention is stored.

    Returns
    -------
    int
        The number of the request.

    Raises
    ------
    CacheError
        The stored model has no such layers, or the request is there; else as in `capture_attention`.
    NotFound
        There is no such inference session.

    Examples
    --------
    >>> record_attention(session, served, model, tokenizer("to be or not to be")["input_ids"])  # doctest: +SKIP
    """
    captured = capture_attention(model, input_ids, top_count=top_count, keep_matrices=keep_matrices, **inputs)
    served = find_inference_session(session, inference_session)
    paths = layer_paths(ModelLayers(session, served.model_id), captured, getattr(model, "base_model_prefix", ""))
    number = _next_request(session, served) if request_number is None else request_number
    tokens = _one_request(input_ids)[0].cpu().numpy()
    put_summaries(session, served, number, tokens, {paths[name]: each for name, each in captured.items()})
    return number


def attention_modules(model: torch.nn.Module) -> dict[str, tuple[torch.nn.Module, int]]:
    """Modules of self-attention by name, each with the place of its weights among what it returns.

    Models of transformers say so themselves, for their own ``output_attentions``.
    """
    specs = [each for part in model.modules() for each in _specs(part)]
    found = {}
    for name, module in model.named_modules():
        for kind, layer_name, index in specs:
            is_kind = name.endswith(kind) if isinstance(kind, str) else isinstance(module, kind)
            if is_kind and (layer_name is None or f".{layer_name.strip('.')}." in f".{name}."):
                found[name] = module, index
    return found


def layer_paths(layers: ModelLayers, modules: Iterable[str], prefix: str = "") -> dict[str, str]:
    """Paths of the stored layers that modules are: the same name, with or without the prefix of the model's body.

    A module may be a part of a stored layer, as ``attention.self`` is in BERT; where no name fits, the number of its
    block decides.

    Raises
    ------
    CacheError
        A module is none of the layers.
    """
    known = {each.path for each in layers.attention}
    return {name: _layer_path(layers, known, name, prefix) for name in modules}


def _layer_path(layers: ModelLayers, known: set[str], name: str, prefix: str) -> str:
    at = name
    while at:
        for path in (at, at.removeprefix(f"{prefix}."), f"{prefix}.{at}"):
            if path in known:
                return path
        at = at.rpartition(".")[0]
    numbers = [int(part) for part in name.split(".") if part.isdecimal()]
    if len(numbers) != 1:
        raise CacheError(f"module {name!r} is no attention of the stored model, which has {', '.join(sorted(known))}")
    found: str = layers.find(numbers[0]).path
    return found


def _specs(part: torch.nn.Module) -> Iterator[tuple[type | str, str | None, int]]:
    """Class, or end of the name, of modules that attend; a part of their names; the place of their weights."""
    recorded: Mapping[str, Any] = getattr(part, "_can_record_outputs", None) or {}
    given = recorded.get("attentions", [])
    for each in given if isinstance(given, list) else [given]:
        if isinstance(each, type | str):
            yield each, None, 1
        else:
            yield each.target_class or each.class_name, each.layer_name, each.index


def _hook(name: str, index: int, visit: Callable[[str, np.ndarray], None]) -> Callable[..., None]:
    def show(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        weights = output[index] if isinstance(output, tuple) and len(output) > index else None
        if weights is None:
            raise CacheError(f"module {name!r} showed no attention weights; its attention must be computed by eager")
        if weights.ndim != 4 or len(weights) != 1:  # noqa: PLR2004  batch, heads, queries, keys
            raise CacheError(f"module {name!r} showed attention of shape {list(weights.shape)}; give one request")
        visit(name, to_numpy(weights[0], name))

    return show


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    config = model.config
    before = {"": config._attn_implementation}  # noqa: SLF001  there is no other way to ask
    for key in getattr(config, "sub_configs", {}):
        if (part := getattr(config, key, None)) is not None:
            before[key] = part._attn_implementation  # noqa: SLF001  as above
    if set(before.values()) == {_EAGER}:
        yield
        return
    model.set_attn_implementation(_EAGER)
    try:
        if config._attn_implementation != _EAGER:  # noqa: SLF001  as above
            raise ConfigurationError(f"{type(model).__name__} cannot compute attention by eager, which shows weights")
        yield
    finally:
        model.set_attn_implementation(before if len(before) > 1 else before[""])


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _one_request(input_ids: torch.Tensor | Sequence[int]) -> torch.Tensor:
    ids = torch.as_tensor(input_ids)
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or len(ids) != 1:  # noqa: PLR2004  batch and tokens
        raise CacheError(f"input_ids have shape {list(ids.shape)}; give one request: [tokens], or [1, tokens]")
    return ids


def _next_request(session: Session, served: InferenceSession) -> int:
    last = select(func.max(AttentionPattern.request_number)).where(AttentionPattern.inference_session_id == served.id)
    found = session.scalar(last)
    return 0 if found is None else found + 1

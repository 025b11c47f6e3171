"""What a layer's config says beyond its widths: sizes inside, activation, epsilon, experts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arc_halo.formats.architectures.tree import Layer

# The same thing under the names that model types give it in config.json, the first that is there counts.
ACTIVATION = ("hidden_act", "hidden_activation", "activation_function", "activation")
EPSILON = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k")


def layer_config(layer: Layer, config: Mapping[str, object]) -> dict[str, Any]:
    """What is known of a declared layer, as JSON values; heads are added where they are cut."""
    module = layer.module
    if module is None:
        return {}
    known: dict[str, Any] = {}
    if module.role is not None:
        known["role"] = module.role
    if module.embedding is not None:
        known["kind"] = module.embedding
    if layer.layer_type == "normalization":
        known["epsilon"] = _first(config, EPSILON)
    if module.role == "router":
        known["experts_per_token"] = _first(config, EXPERTS_PER_TOKEN)
    elif layer.layer_type == "feedforward" and layer.weights:
        known |= {"intermediate_size": _intermediate_size(layer), "activation": _first(config, ACTIVATION)}
    if module.role == "experts":
        known["experts"] = _stacked(layer)
    return {key: value for key, value in known.items() if value is not None}


def _first(config: Mapping[str, object], fields: tuple[str, ...]) -> str | int | float | None:
    for name in fields:
        value = config.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if is_number or isinstance(value, str):
            return value  # type: ignore[return-value]  # narrowed by is_number
    return None


def _intermediate_size(layer: Layer) -> int | None:
    """Input width of the last matrix: what the activation gives."""
    assert layer.module is not None
    last = next((layer.weights[owned] for owned in reversed(layer.module.owns) if owned in layer.weights), None)
    if last is None or len(last.shape) < 2:  # noqa: PLR2004  # no matrix
        return None
    return last.shape[-2 if layer.module.transposed else -1]


def _stacked(layer: Layer) -> int | None:
    """Experts of a layer whose tensors hold all of them along the first axis."""
    return next((tensor.shape[0] for tensor in layer.weights.values() if len(tensor.shape) == 3), None)  # noqa: PLR2004

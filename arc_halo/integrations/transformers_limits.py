"""Models and generations of transformers whose keys and values are not those of the tokens before them."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, Final

import torch

from arc_halo.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from transformers import PreTrainedModel

# They would put something else than the prompt's tokens into keys and values, or make several rows of them.
_REFUSED: Final = frozenset(
    {"assistant_model", "cache", "cache_implementation", "custom_generate", "inputs_embeds", "past_key_values"}
    | {"position_ids", "prompt_lookup_num_tokens", "token_type_ids"}
)
# As they come to be, of the call, its config and the model's: several rows, caches and tokens of transformers' own, or
# an answer that is no tensor.
_ONE: Final = ("num_beams", "num_return_sequences")
_NONE: Final = ("assistant_early_exit", "cache_implementation", "prompt_lookup_num_tokens")
_FALSE: Final = ("return_dict_in_generate", "token_healing", "use_mtp")
# Rotary embeddings of short and of long sequences; its name in older configs.
_OF_WHOLE_LENGTH: Final = frozenset({"longrope", "su"})
_ENCODER: Final = (
    "keys of an encoder depend on tokens after them: they are not those of the prefix alone; use this model without a "
    "cache"
)


def check_positions(model: PreTrainedModel) -> None:
    """Refuse rotary embeddings whose frequencies are chosen by the length of the whole sequence."""
    for part in model.modules():
        config = vars(part).get("config")
        said = [vars(part).get("rope_type")]
        said += [getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")]
        for kind in _rope_types(said):
            if "dynamic" in kind or kind in _OF_WHOLE_LENGTH:
                raise CacheError(
                    f"rotary embeddings of type {kind!r} turn the keys of a prefix by the length of all that follows: "
                    "they are not those of the prefix alone; use this model without a cache"
                )


def _rope_types(said: Any) -> Iterator[str]:
    """One of all layers, or one for each kind of layers."""
    if isinstance(said, str):
        yield said
    elif isinstance(said, dict):
        nested = [each for each in said.values() if isinstance(each, dict)]
        # A module keeps types by the kind of layer, a config parameters; of these only the type is a type.
        has_parameters = bool(nested) or not all(isinstance(each, str) for each in said.values())
        own = [said.get("rope_type"), said.get("type")] if has_parameters else list(said.values())
        yield from _rope_types([*nested, *own])
    elif isinstance(said, list):
        for each in said:
            yield from _rope_types(each)


def check_direction(model: PreTrainedModel) -> None:
    """Refuse a model that says that its attention looks at later tokens."""
    said = _is_causal(model)
    # Not one by one: the decoder's own attention stands beside one to an encoder's states, which is in no order.
    if False in said and True not in said:
        raise CacheError(_ENCODER)


def check_later_tokens(model: PreTrainedModel, keys_of: Callable[[torch.Tensor], list[torch.Tensor]]) -> None:
    """Refuse a model that does not say where its attention looks, and whose first token's keys another one changes.

    Parameters
    ----------
    keys_of
        Computes the keys of each layer, [1, kv_heads, tokens, dim], of a row of tokens.
    """
    if _is_causal(model):
        return
    one, other = (keys_of(torch.tensor([[0, second]], device=model.device)) for second in (0, 1))
    # Of equal shapes, so nothing is rounded otherwise.
    if not all(torch.equal(ours[:, :, 0], theirs[:, :, 0]) for ours, theirs in zip(one, other, strict=True)):
        raise CacheError(_ENCODER)


def _is_causal(model: PreTrainedModel) -> set[bool]:
    """What the layers that have a place in a cache say; nothing in architectures that transformers has not reworked.

    ``config.is_decoder`` tells nothing: it is false in some decoders, and missing in most.
    """
    said = set()
    for part in model.modules():
        own = vars(part)
        if own.get("layer_idx") is not None and isinstance(own.get("is_causal"), bool):
            # The config decides about the mask where it says anything.
            said.add(own["is_causal"] and getattr(own.get("config"), "is_causal", None) is not False)
    return said


def check_options(options: Mapping[str, Any], model: PreTrainedModel, token_count: int) -> None:
    """Refuse what would make keys and values differ from those of the prompt's tokens."""
    refused = sorted(_REFUSED & options.keys())
    refused += [name for name in _ONE if _effective(name, options, model) not in {None, 1}]
    # What is called "hybrid" in a config transformers leaves aside.
    refused += [name for name in _NONE if _effective(name, options, model) not in {None, "hybrid"}]
    refused += [name for name in _FALSE if _effective(name, options, model)]
    mask = options.get("attention_mask")
    if mask is not None and (tuple(mask.shape) != (1, token_count) or not bool(mask.bool().all())):
        refused.append("attention_mask with padding")
    refused += sorted(n for n, v in options.items() if isinstance(v, torch.Tensor) and n != "attention_mask")
    if refused:
        raise CacheError(f"keys and values cannot be cached with {', '.join(dict.fromkeys(refused))}; leave it out")


def _effective(name: str, options: Mapping[str, Any], model: PreTrainedModel) -> Any:
    """What ``generate`` will take: the call's, else its config's, else the model's."""
    if name in options:
        return options[name]
    configs = (options.get("generation_config"), getattr(model, "generation_config", None))
    found = (getattr(config, name, None) for config in configs)
    return next((value for value in found if value is not None), None)


def with_cache(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with a cache in use; transformers wants that said in the config where there is one."""
    if options.get("generation_config") is None:
        return {**options, "use_cache": True}
    config = copy(options["generation_config"])
    config.use_cache = True
    return {name: value for name, value in options.items() if name != "use_cache"} | {"generation_config": config}

"""What the metadata of a GGUF file say of its model, in the words of config.json."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from arc_halo.formats.gguf_values import Float32, GGUFArray, array_values
from arc_halo.formats.vocabulary import from_tokens, storable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arc_halo.formats.gguf_values import Value

ARCHITECTURE_KEY = "general.architecture"
TOKENS_KEY = "tokenizer.ggml.tokens"
METADATA_FIELD = "gguf"
"""Where the config has the metadata as they are."""

# Vocabularies have their place in the header, which is kept; a config is for people and queries.
MAX_INLINE_COUNT = 256
MAX_INLINE_NBYTES = 1 << 16

_FIELDS = MappingProxyType(
    {
        "block_count": "num_hidden_layers",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "context_length": "max_position_embeddings",
        "vocab_size": "vocab_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "attention.layer_norm_epsilon": "layer_norm_eps",
        "rope.freq_base": "rope_theta",
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
    }
)


def config_of(metadata: Mapping[str, Value], content: bytes) -> dict[str, Any]:
    """A config with the fields that architectures are told by, and the metadata under ``gguf``.

    Arrays of more than 256 elements, and texts above 64 KiB, are only described there: they stay in the header.
    """
    architecture = metadata.get(ARCHITECTURE_KEY)
    config: dict[str, Any] = {"model_type": storable(architecture)} if isinstance(architecture, str) else {}
    for key, field in _FIELDS.items():
        value = metadata.get(f"{architecture}.{key}")
        if value is not None:
            config[field] = _single(_as_json(value, content))
    tokens = metadata.get(TOKENS_KEY)
    if isinstance(tokens, GGUFArray):
        config.setdefault("vocab_size", tokens.count)
    if metadata:
        config[METADATA_FIELD] = {storable(key): _as_json(value, content) for key, value in metadata.items()}
    return config


def token_texts(metadata: Mapping[str, Value], content: bytes) -> dict[int, str]:
    """Token id -> text; empty when the file has no vocabulary.

    Raises
    ------
    ModelFolderError
        So many empty tokens that they would take far more memory than the file.
    """
    tokens = metadata.get(TOKENS_KEY)
    if not isinstance(tokens, GGUFArray) or tokens.type_name != "string":
        return {}
    return from_tokens(array_values(content, tokens), tokens.count, len(content), TOKENS_KEY)


def _single(value: Any) -> Any:
    """The number that a list has for each block, where all blocks have the same."""
    is_repeated = isinstance(value, list) and value and all(each == value[0] for each in value)
    return value[0] if is_repeated else value


def _as_json(value: Any, content: bytes) -> Any:
    if isinstance(value, GGUFArray):
        if value.count > MAX_INLINE_COUNT or value.type_name == "array":
            return {"array_of": value.type_name, "count": value.count}
        return [_as_json(each, content) for each in array_values(content, value)]
    if isinstance(value, bytes):
        value = _text(value)
    if isinstance(value, str):
        return storable(value) if len(value) <= MAX_INLINE_NBYTES else {"text_of": len(value)}
    if isinstance(value, float):
        if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return value.shortest() if isinstance(value, Float32) else value
    return value


def _text(raw: bytes) -> str:
    """A text of an array, which early converters wrote as the bytes that a token stands for."""
    return storable(raw.decode("utf-8", "backslashreplace"))

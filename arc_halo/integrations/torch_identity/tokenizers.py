"""What a tokenizer makes of text, as a digest."""

from __future__ import annotations

from typing import Any, Final

from blake3 import blake3

from arc_halo.errors import CacheError
from arc_halo.integrations.torch_identity.spelling import canonical

# BLAKE3's key derivation mode. Part of what caches are named by.
_CONTEXT: Final = "arc-halo 2026-11 tokenizer identity"
_MARK: Final = ',"added_tokens":'
_SETTINGS: Final = ("add_bos_token", "add_eos_token", "padding_side", "truncation_side")


def tokenizer_digest(tokenizer: Any) -> bytes:
    """BLAKE3-256 of a tokenizer of transformers or of ``tokenizers``; 32 bytes.

    Of a fast one its backend's own JSON counts; of one in Python class and vocabulary. Special tokens and the chat
    template count for either.

    Raises
    ------
    CacheError
        It is neither.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    described: dict[str, Any] = {"template": getattr(tokenizer, "chat_template", None)}
    described["special"] = {
        str(name): str(value) for name, value in getattr(tokenizer, "special_tokens_map", {}).items()
    }
    described["settings"] = {name: repr(getattr(tokenizer, name, None)) for name in _SETTINGS}
    if callable(getattr(backend, "to_str", None)):
        described["backend"] = _without_state(backend)
    elif callable(getattr(tokenizer, "get_vocab", None)):
        described["class"] = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
        described["vocabulary"] = sorted(tokenizer.get_vocab().items())
        described["options"] = {
            name: value
            for name, value in getattr(tokenizer, "init_kwargs", {}).items()
            if isinstance(value, bool | int | float) or value is None
        }
    else:
        raise CacheError(f"{type(tokenizer).__qualname__} is no tokenizer whose vocabulary could be read")
    return blake3(canonical(described), derive_key_context=_CONTEXT).digest()


def _without_state(backend: Any) -> str:
    """A backend's JSON without padding and truncation, which each call of transformers sets as it was asked to.

    They stand before the added tokens; no text in them can hold the mark, whose quotes would be escaped.
    """
    text: str = backend.to_str()
    head, _, tail = text.partition(_MARK)
    return tail or head

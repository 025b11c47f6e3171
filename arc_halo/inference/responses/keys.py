"""What a response is found by: the canonical form of its settings, and the digests of those and of the prompt."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3

from arc_halo.errors import CacheError

if TYPE_CHECKING:
    from arc_halo.inference.namespaces import Namespace

# BLAKE3's key derivation mode: no digest of one kind is one of another. Part of the stored format.
_SETTINGS: Final = "arc-halo 2026-11 response settings"
_PROMPT: Final = "arc-halo 2026-11 response prompt"
_FLIGHT: Final = "arc-halo 2026-11 response single flight"


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the canonical JSON of its settings, with the digests that they are looked for by."""

    prompt: str
    settings: str
    settings_digest: bytes
    prompt_digest: bytes

    def flight_digest(self, namespace: Namespace) -> bytes:
        """Of all that the response depends on; 32 bytes."""
        return blake3(namespace.digest + self.settings_digest + self.prompt_digest, derive_key_context=_FLIGHT).digest()


def question(prompt: str, settings: Mapping[str, Any]) -> Question:
    """What is asked, with its digests.

    Raises
    ------
    CacheError
        The prompt is no text that PostgreSQL can hold, or the settings are no JSON.
    """
    canonical = canonical_json(settings, "settings")
    return Question(
        prompt=checked_text(prompt, "the prompt"),
        settings=canonical,
        settings_digest=digest_of(_SETTINGS, canonical),
        prompt_digest=digest_of(_PROMPT, prompt),
    )


def settings_digest(settings: Mapping[str, Any]) -> bytes:
    """BLAKE3-256 of the canonical JSON of settings; 32 bytes.

    Keys are in the order of their code points, numbers of equal value are spelled alike (``1`` and ``1.0`` are), and a
    tuple is a list.

    Raises
    ------
    CacheError
        They have something that JSON has not (NaN, infinity, bytes, keys that are no strings), or PostgreSQL (NUL).
    """
    return digest_of(_SETTINGS, canonical_json(settings, "settings"))


def digest_of(context: str, text: str) -> bytes:
    """BLAKE3-256 of a text in UTF-8, in a context of its own."""
    return blake3(text.encode(), derive_key_context=context).digest()


def canonical_json(values: Mapping[str, Any], name: str) -> str:
    """One spelling for all objects that are equal as JSON; ``name`` is what a message calls them."""
    if not isinstance(values, Mapping):
        raise CacheError(f"{name} must be a mapping, not {type(values).__name__}")
    try:
        return json.dumps(
            _plain(values, name), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except (ValueError, RecursionError) as error:
        if isinstance(error, CacheError):
            raise
        raise CacheError(f"{name} cannot be written as JSON: {error}; give fewer digits or less depth") from error


def checked_text(text: object, name: str) -> str:
    """The text itself.

    Refused rather than escaped: what is stored is what was asked, in every column and for every reader in SQL.

    Raises
    ------
    CacheError
        It is none, or has NUL or half of a surrogate pair, which PostgreSQL cannot hold.
    """
    if not isinstance(text, str):
        raise CacheError(f"{name} must be text, not {type(text).__name__}")
    if "\0" in text:
        raise CacheError(f"{name} has a NUL character, which PostgreSQL's text cannot hold: leave it out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CacheError(f"{name} is no Unicode text: {error.reason} at {error.start}") from None
    return text


def is_sampled(settings: Mapping[str, Any]) -> bool:
    """Whether asking again with the same settings may give another answer, as far as they say.

    A temperature that is not zero, or ``do_sample``, with no ``seed``.
    """
    return bool(settings.get("temperature") or settings.get("do_sample")) and settings.get("seed") is None


def _plain(value: Any, name: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return checked_text(value, f"a text in {name}")
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else float(value)
    if isinstance(value, list | tuple):
        return [_plain(each, name) for each in value]
    if isinstance(value, Mapping):
        return {_key(key, name): _plain(each, name) for key, each in value.items()}
    raise CacheError(
        f"{name} have {value!r:.80}, which JSON has not; give numbers that are finite, texts, lists, dicts"
    )


def _key(key: object, name: str) -> str:
    return checked_text(key, f"a key of {name}")

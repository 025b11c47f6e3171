"""What members say, made such that strategies can rely on it, and that the database takes it: nothing is lost for it.

JSONB refuses NUL, lone surrogates, NaN and infinity, and whatever is not of JSON; columns refuse negative counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arc_halo.errors import MemberError
from arc_halo.fusion.members.protocol import Answer, TokenChoice
from arc_halo.fusion.pools import LEAST_LOG_PROBABILITY

if TYPE_CHECKING:
    from arc_halo.fusion.strategies.protocol import Fused

MAX_ANSWER_CHARACTERS: Final = 1 << 24
_MAX_CHARACTERS: Final = 1 << 25  # of anything: in four bytes each it is half of what a value of JSONB may have
_MAX_ELEMENTS: Final = 100_000
_MAX_DEPTH: Final = 64
_MAX_BITS: Final = 1024
_MAX_COUNT: Final = 2**31 - 1
_SHOWN: Final = 200
_ROUNDING: Final = 1e-3
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


def plain_text(text: str) -> str:
    """A text that PostgreSQL takes: with U+FFFD for NUL and lone surrogates, and not without end."""
    cut = text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."
    return _UNSTORABLE.sub(_REPLACEMENT, cut)


def plain_json(value: Any) -> Any:
    """Values of JSON that JSONB takes; for what is not of JSON a text that says what it was, for too much null."""
    return _Reading().read(value)


def finite(value: float | None) -> float | None:
    """A number, or None for what is none."""
    return value if value is not None and math.isfinite(value) else None


def said_by(error: BaseException) -> str:
    """What an exception says, whatever its own code does when it is asked."""
    try:
        said = str(error)
    except Exception:  # noqa: BLE001  # of somebody else's code
        said = "it cannot be shown"
    return plain_text(f"{type(error).__name__}: {said}"[:2000])


def received(answer: Any) -> tuple[Answer, list[str]]:
    """An answer as it can be worked with, and what of it was replaced or left out.

    Log-probabilities are left out, all of them, where one is no number or above 0: a confidence made of the rest would
    say nothing. Minus infinity becomes the least there is.

    Raises
    ------
    MemberError
        It is no `Answer`, has no text, or one without end.
    """
    if not isinstance(answer, Answer):
        raise MemberError(f"it gave a {type(answer).__name__} in the place of an Answer")
    if not isinstance(answer.text, str):
        raise MemberError(f"the text of its answer is a {type(answer.text).__name__}")
    if len(answer.text) > MAX_ANSWER_CHARACTERS:
        raise MemberError(f"its answer has {len(answer.text):,} characters, and {MAX_ANSWER_CHARACTERS:,} are read")
    changed = []
    values: dict[str, Any] = {"text": plain_text(answer.text)}
    if values["text"] != answer.text:
        changed.append("text")
    finish = answer.finish_reason
    values["finish_reason"] = plain_text(finish)[:_SHOWN] if isinstance(finish, str) else "stop"
    if values["finish_reason"] != finish:
        changed.append("finish_reason")
    for name in ("prompt_token_count", "generated_token_count", "cached_token_count"):
        values[name] = _count(getattr(answer, name))
        if values[name] is None and getattr(answer, name) is not None:
            changed.append(name)
    values["cost"] = _cost(answer.cost)
    if values["cost"] is None and answer.cost is not None:
        changed.append("cost")
    choices = _choices(answer.choices)
    values["choices"] = choices or ()
    if choices is None:
        changed.append("choices")
    reading = _Reading()
    details = reading.read(answer.details)
    values["details"] = details if isinstance(details, dict) else {}
    if reading.is_changed or not isinstance(details, dict):
        changed.append("details")
    return replace(answer, **values), changed


def plain_fused(fused: Fused) -> Fused:
    """A joint answer that the database takes."""
    return replace(
        fused, text=plain_text(fused.text), score=finite(fused.score), details=plain_json(dict(fused.details))
    )


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        return None
    return int(value) if 0 <= value <= _MAX_COUNT else None


def _cost(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and 0 <= number < math.inf else None


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _choices(said: Any) -> tuple[TokenChoice, ...] | None:
    """None where they cannot be relied on."""
    if not isinstance(said, (tuple, list)):
        return None
    found = []
    for each in said:
        if not (isinstance(each, TokenChoice) and isinstance(each.text, str) and isinstance(each.top, Mapping)):
            return None
        log_probability = _log_probability(each.log_probability)
        top = {plain_text(str(text)): _log_probability(value) for text, value in each.top.items()}
        known = {text: value for text, value in top.items() if value is not None}
        if log_probability is None or len(known) < len(top):
            return None
        found.append(TokenChoice(plain_text(each.text), log_probability, known))
    return tuple(found)


def _log_probability(value: Any) -> float | None:
    number = _number(value)
    if number is None or math.isnan(number) or number > _ROUNDING:
        return None
    return max(number, LEAST_LOG_PROBABILITY)


class _Reading:
    """One value with all that is in it: so many elements, so deep."""

    def __init__(self) -> None:
        self._left = _MAX_ELEMENTS
        self.is_changed = False

    def read(self, value: Any, depth: int = 0) -> Any:
        """As values of JSON."""
        self._left -= 1
        if self._left < 0 or depth > _MAX_DEPTH:
            return self._changed(None)
        if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size <= self._left):
            value = value.tolist()
        if isinstance(value, Mapping):
            return {self._key(key): self.read(each, depth + 1) for key, each in self._counted(value.items())}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.read(each, depth + 1) for each in self._counted(value)]
        return self._read_one(value)

    def _read_one(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int):
            return int(value) if value.bit_length() <= _MAX_BITS else self._changed(None)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else self._changed(str(float(value)))
        return self._changed(f"<{type(value).__name__}>")

    def _counted(self, values: Any) -> Any:
        """No more than can be read: a mapping may go on without end."""
        for each in values:
            if self._left <= 0:
                self.is_changed = True
                return
            yield each

    def _key(self, key: Any) -> str:
        if isinstance(key, str):
            return self._text(key)
        return self._text(str(key) if isinstance(key, (int, float, np.generic)) else f"<{type(key).__name__}>")

    def _text(self, text: str) -> str:
        plain = plain_text(text)
        self.is_changed |= plain != text
        return plain

    def _changed(self, value: Any) -> Any:
        self.is_changed = True
        return value

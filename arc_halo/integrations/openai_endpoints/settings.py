"""Endpoints as the environment and ``.env`` have them, by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Literal

import httpx
from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME: Final = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*")
# Longer than any token there is; what echoes it can be cut out of an error before that is shortened.
_MAX_KEY_LENGTH: Final = 4096

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _address(url: str) -> str:
    # No part that may be a secret: the address is told in errors and in the log.
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise ValueError("is no URL") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("must be http:// or https:// with a host")
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise ValueError("must have no user, password, query or fragment; a key has a variable of its own")
    return url.rstrip("/")


def _key(key: SecretStr) -> SecretStr:
    # Another character would be told by the error of the library that refuses it, and the key with it.
    said = key.get_secret_value()
    if not (said.isascii() and said.isprintable() and " " not in said):
        raise ValueError("holds characters that no key has; is there a line break or a space in it?")
    if len(said) > _MAX_KEY_LENGTH:
        raise ValueError(f"is longer than {_MAX_KEY_LENGTH} characters")
    return key


class EndpointSettings(BaseSettings):
    """One endpoint; each field is ``ARC_HALO_ENDPOINT_<NAME>_<FIELD>`` in the environment.

    Attributes
    ----------
    url
        Up to the version, as ``https://api.openai.com/v1``.
    key
        Sent as a bearer token; None for servers without one.
    model
        As the server calls it.
    kind
        ``chat`` asks ``/chat/completions``, ``completions`` asks ``/completions`` to continue the prompt.
    logprobs
        Ask for log-probabilities, which makes a member of level L; servers without them may refuse.
    limit
        What the server calls the greatest number of tokens of an answer.
    prompt_price, answer_price
        For a million tokens; without either an answer has no cost.
    seconds
        Of an answer, attempts and waits included.
    attempts
        How often a question is sent at most.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    url: Annotated[str, AfterValidator(_address)]
    key: Annotated[SecretStr, AfterValidator(_key)] | None = None
    model: str
    kind: Literal["chat", "completions"] = "chat"
    logprobs: bool = False
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    prompt_price: Price | None = None
    answer_price: Price | None = None
    seconds: Annotated[PositiveFloat, Field(le=86_400)] = 60.0  # a day: more than any timer takes is no limit
    attempts: PositiveInt = 4


def variable_prefix(name: str) -> str:
    """What the variables of an endpoint begin with: dots and hyphens become underscores.

    Raises
    ------
    ConfigurationError
        No endpoint can be called that.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"no endpoint can be called {name[:100]!r}: letters and digits, with single dots, hyphens or underscores "
            "between"
        )
    return f"ARC_HALO_ENDPOINT_{re.sub('[.-]', '_', name).upper()}_"


def _wrong(prefix: str, field: object, kind: str, message: str) -> str:
    variable = f"{prefix}{str(field).upper()}"
    return f"{variable} is not set" if kind == "missing" else f"{variable}: {message}"


def load_endpoint(name: str) -> EndpointSettings:
    """Read what is configured for an endpoint as it stands now.

    Raises
    ------
    ConfigurationError
        Nothing is, or a variable has a value of the wrong kind; the message names the variable, never its value.
    """
    prefix = variable_prefix(name)
    read: Callable[..., EndpointSettings] = EndpointSettings  # types of fields alone are known of its own signature
    try:
        return read(_env_prefix=prefix)
    except ValidationError as error:
        wrong = ", ".join(_wrong(prefix, each["loc"][0], each["type"], each["msg"]) for each in error.errors())
        raise ConfigurationError(
            f"the endpoint {name!r} cannot be used: {wrong}; correct the environment or .env"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f".env in the working directory is not UTF-8 ({error.reason}); save it as that"
        ) from None

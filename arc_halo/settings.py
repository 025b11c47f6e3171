"""Frozen settings, read from the environment and from a ``.env`` file in the working directory."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # pydantic reads the annotation

from platformdirs import user_cache_path, user_data_path
from pydantic import AliasChoices, Field, PositiveFloat, PositiveInt, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from arc_halo.errors import ConfigurationError


class Settings(BaseSettings):
    """What may be set from outside; each field is ``ARC_HALO_<FIELD>`` in the environment."""

    model_config = SettingsConfigDict(
        env_prefix="ARC_HALO_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )

    # The password in a URL is a secret: SecretStr keeps it out of reprs and tracebacks.
    database_url: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("ARC_HALO_DATABASE_URL", "DATABASE_URL")
    )
    blob_url: SecretStr | None = None  # of an object store; may hold credentials, too
    cache_folder: Path = Field(default_factory=lambda: user_cache_path("arc-halo", appauthor=False))
    cache_nbytes: int = Field(default=20_000_000_000, ge=0)  # 0: none
    home: Path = Field(default_factory=lambda: user_data_path("arc-halo", appauthor=False))
    spool_folder: Path | None = None  # None: in home
    pool_size: PositiveInt = 5
    max_overflow: int = Field(default=5, ge=0)
    pool_timeout_seconds: PositiveFloat = 30.0
    connect_timeout_seconds: PositiveInt = 10
    connect_attempts: PositiveInt = 6
    neon_api_key: SecretStr | None = None
    neon_project: str | None = None
    neon_api_url: str = "https://console.neon.tech/api/v2"
    statement_timeout_seconds: float = Field(default=0.0, ge=0)  # 0: none; imports run long


def load_settings() -> Settings:
    """Read the settings as they stand now.

    Raises
    ------
    ConfigurationError
        A variable has a value of the wrong kind, or ``.env`` is no UTF-8 text; the message names the variable, never
        its value.
    """
    try:
        return Settings()
    except ValidationError as error:
        wrong = ", ".join(f"{_variable(problem['loc'])}: {problem['msg']}" for problem in error.errors())
        raise ConfigurationError(f"settings cannot be used: {wrong}; correct the environment or .env") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f".env in the working directory is not UTF-8 ({error.reason}); save it as that"
        ) from None


def _variable(location: tuple[int | str, ...]) -> str:
    """The environment variable of a field; an alias is one already."""
    name = str(location[0])
    return name if name.isupper() else f"ARC_HALO_{name.upper()}"

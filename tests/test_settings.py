from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from arc_halo.errors import ConfigurationError
from arc_halo.settings import Settings, load_settings

SECRET = "postgresql://somebody:open-sesame@db.example/models"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (*(f"ARC_HALO_{field.upper()}" for field in Settings.model_fields), "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_nothing_needs_to_be_set():
    settings = load_settings()
    assert settings.database_url is None
    assert settings.home.is_absolute()


@pytest.mark.parametrize(
    "names", [["DATABASE_URL"], ["ARC_HALO_DATABASE_URL"], ["DATABASE_URL", "ARC_HALO_DATABASE_URL"]]
)
def test_our_own_variable_goes_before_the_common_one(monkeypatch, names):
    for name in names:
        monkeypatch.setenv(name, f"postgresql://{name.lower()}/x")
    assert load_settings().database_url.get_secret_value() == f"postgresql://{names[-1].lower()}/x"


def test_a_file_sets_what_the_environment_does_not(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("ARC_HALO_POOL_SIZE=7\nARC_HALO_MAX_OVERFLOW=8\nOTHER_TOOL=1\n")
    monkeypatch.setenv("ARC_HALO_POOL_SIZE", "9")
    settings = load_settings()
    assert (settings.pool_size, settings.max_overflow) == (9, 8)


def test_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("ARC_HALO_HOME", "")
    assert load_settings() == Settings()


def test_a_home_is_a_path(monkeypatch, tmp_path):
    monkeypatch.setenv("ARC_HALO_HOME", str(tmp_path / "home"))
    assert load_settings().home == Path(tmp_path / "home")


@pytest.mark.parametrize(
    ("name", "value"),
    [("POOL_SIZE", "0"), ("POOL_SIZE", "many"), ("MAX_OVERFLOW", "-1"), ("CONNECT_TIMEOUT_SECONDS", "0.5"),
     ("STATEMENT_TIMEOUT_SECONDS", "-1"), ("CONNECT_ATTEMPTS", "open-sesame")],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_names_the_variable_but_not_the_value(monkeypatch, name, value):
    monkeypatch.setenv(f"ARC_HALO_{name}", value)
    with pytest.raises(ConfigurationError, match=f"ARC_HALO_{name}.*environment or .env") as refused:
        load_settings()
    assert "open-sesame" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_secrets_are_not_shown(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", SECRET)
    settings = load_settings()
    assert "open-sesame" not in f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"
    assert settings.database_url.get_secret_value() == SECRET


def test_settings_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().pool_size = 3


def test_a_dotenv_that_is_no_text_is_refused(monkeypatch, tmp_path):
    (tmp_path / ".env").write_bytes(b"ARC_HALO_HOME=\xff\xfe")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="UTF-8"):
        load_settings()

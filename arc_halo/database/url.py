"""Which database is meant, and the policy that every URL passes before a connection is made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from arc_halo.settings import Settings

DRIVER: Final = "postgresql+psycopg"
_ACCEPTED_DRIVERS: Final = frozenset({"postgresql", "postgres", DRIVER})
_LOCAL_HOSTS: Final = frozenset({"", "localhost", "127.0.0.1", "::1"})
_SECRETS: Final = ("password", "sslpassword", "oauth_client_secret")
_PREPARE_THRESHOLD: Final = "prepare_threshold"
_LONGEST_COUNT: Final = 9  # digits
_EXAMPLE: Final = "postgresql://user:password@host/database"

# A link that died without a word is noticed within a minute, not after the kernel's quarter of an hour.
_KEEPALIVES: Final = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


def parse_url(text: str | URL) -> URL:
    """Read a database URL and complete it by the policy for hosts that are not local.

    A bare ``postgresql://`` or ``postgres://`` means psycopg 3. For a host reached over a network TLS with a verified
    certificate and channel binding is the default; a URL that names its own ``sslmode`` is taken at its word.

    Raises
    ------
    ConfigurationError
        The URL cannot be read, names another database system or driver, or has a ``prepare_threshold`` that is neither
        a count nor ``none``. The message never holds a password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # a port that is no number is quoted, and can be the end of a password
        raise ConfigurationError(
            f"the database URL cannot be read; write it as {_EXAMPLE}, with %-escapes for special characters"
        ) from None
    if url.drivername not in _ACCEPTED_DRIVERS:
        raise ConfigurationError(
            f"the database URL begins with {url.drivername!r}, but only PostgreSQL through psycopg 3 is supported: "
            f"write {_EXAMPLE}"
        )
    url = url.set(drivername=DRIVER)
    if "password" in url.query:  # an engine's repr hides the password's own place, not the query
        url = url.set(password=_single(url, "password")).difference_update_query(["password"])
    _prepare_threshold(url)
    return url if is_local(url) else _require_tls(url)


def configured_url(settings: Settings) -> URL | None:
    """The URL the environment or ``.env`` asks for; None means the embedded server."""
    return parse_url(settings.database_url.get_secret_value()) if settings.database_url else None


def is_local(url: URL) -> bool:
    """Whether every host of ``url`` is this machine: loopback or a Unix socket."""
    return all(host in _LOCAL_HOSTS or host.startswith(("/", "@")) for host in _hosts(url))


def is_pooled(url: URL) -> bool:
    """Whether ``url`` names a pooler in transaction mode, such as PgBouncer, where no session state survives.

    Neon's are known by their host, ``*-pooler``. Any other is told by ``prepare_threshold=none`` in the URL.
    """
    told = _PREPARE_THRESHOLD in url.query and _prepare_threshold(url) is None
    return told or any(host.partition(".")[0].endswith("-pooler") for host in _hosts(url))


def require_direct(url: URL, purpose: str) -> None:
    """Refuse a pooler for work that needs a session of its own.

    Raises
    ------
    ConfigurationError
        ``url`` is pooled; the message names the direct host where it is known.
    """
    if is_pooled(url):
        hosts = ", ".join(_hosts(url))
        direct = hosts.replace("-pooler", "")
        named = direct if direct != hosts else f"and port, without {_PREPARE_THRESHOLD}=none"
        raise ConfigurationError(
            f"{purpose} cannot go through the pooler {hosts}: it shares sessions between clients, and with them locks "
            f"and settings; use the direct host {named}"
        )


def connect_arguments(url: URL, settings: Settings) -> dict[str, Any]:
    """What psycopg is told beside the URL; anything the URL says itself is left alone.

    ``prepare_threshold`` is psycopg's own option, not libpq's: it wants the number that the URL has as text.

    Through a pooler nothing is prepared and no ``options`` are sent, so ``statement_timeout_seconds`` does not reach
    it: set that on the role instead.
    """
    arguments: dict[str, Any] = {
        "connect_timeout": settings.connect_timeout_seconds,
        "application_name": "arc-halo",
    }
    if not is_local(url):
        arguments |= _KEEPALIVES
    arguments = {name: value for name, value in arguments.items() if name not in url.query}
    if _PREPARE_THRESHOLD in url.query or is_pooled(url):
        arguments[_PREPARE_THRESHOLD] = _prepare_threshold(url)
    if not is_pooled(url) and settings.statement_timeout_seconds:
        timeout = f"-c statement_timeout={round(settings.statement_timeout_seconds * 1000)}"
        arguments["options"] = f"{_single(url, 'options')} {timeout}".strip()
    return arguments


def split_secrets(url: URL) -> tuple[URL, dict[str, str]]:
    """``url`` as its repr may be seen, and the secrets of its query for the driver alone."""
    secrets = {name: _single(url, name) for name in _SECRETS if name in url.query}
    return url.difference_update_query(list(secrets)), secrets


def printable(url: URL) -> str:
    """``url`` with every secret hidden: safe for logs, errors and the terminal."""
    return split_secrets(url)[0].render_as_string(hide_password=True)


def libpq_string(url: URL) -> str:
    """``url`` for libpq, secrets included; SQLAlchemy's own rendering writes a space as ``+``, which libpq keeps."""
    named = url.translate_connect_args(database="dbname", username="user")
    given = url.difference_update_query([_PREPARE_THRESHOLD]).query  # libpq would refuse psycopg's own option
    query = {name: value if isinstance(value, str) else ",".join(value) for name, value in given.items()}
    return make_conninfo("", **named, **query)


def _hosts(url: URL) -> list[str]:
    """Every host libpq would try, its own environment variable included."""
    named = url.query.get("host") or url.host or os.environ.get("PGHOST", "")
    listed = [named] if isinstance(named, str) else list(named)
    return [host.partition(":")[0] if host.count(":") == 1 else host for part in listed for host in part.split(",")]


def _prepare_threshold(url: URL) -> int | None:
    """After how many executions psycopg prepares a statement by this URL; None is never."""
    value = _single(url, _PREPARE_THRESHOLD)
    if _PREPARE_THRESHOLD not in url.query or value == "none":
        return None
    if not (value.isascii() and value.isdecimal() and len(value) <= _LONGEST_COUNT):
        raise ConfigurationError(
            f"{_PREPARE_THRESHOLD} in the database URL is neither a count nor none; write 5 to prepare a statement "
            "after five executions, or none to prepare nothing, as a pooler in transaction mode wants it"
        )
    return int(value)


def _single(url: URL, name: str) -> str:
    value = url.query.get(name, "")
    return value if isinstance(value, str) else value[-1]


def _require_tls(url: URL) -> URL:
    if "sslmode" in url.query:
        return url
    wanted = {"sslmode": "verify-full", "sslrootcert": "system", "channel_binding": "require"}
    return url.update_query_dict({name: value for name, value in wanted.items() if name not in url.query})

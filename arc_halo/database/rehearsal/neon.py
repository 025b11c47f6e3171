"""Branches of a Neon project: clones that are there at once, whatever the size, and cost what is changed in them."""

# ruff: noqa: PLC0415  (httpx is of an extra)

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from arc_halo.database.url import parse_url
from arc_halo.errors import ConfigurationError, DatabaseError, DatabaseUnavailable
from arc_halo.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    import httpx
    from sqlalchemy import URL

# Neon deletes it then, also where nobody is left who would.
_LIFE: Final = timedelta(hours=24)
_SECONDS: Final = 30.0
_READY_SECONDS: Final = 300.0
_POLL_SECONDS: Final = 0.5
_SHOWN: Final = 300
_OVER: Final = {"finished", "skipped"}
_BROKEN: Final = {"failed", "error", "cancelled"}


@contextmanager
def branched(source: URL, name: str, *, schema_only: bool = False, keep: bool = False) -> Iterator[URL]:
    """A branch of the branch that ``source`` is on, deleted at the end, and by Neon itself a day later.

    Raises
    ------
    ConfigurationError
        There is no key or project, or ``source`` is not of that project.
    DatabaseUnavailable, DatabaseError
        Neon does not answer, or refuses.
    """
    with _Project() as project:
        parent = project.branch_of(source)
        branch, url = project.create(parent, name, source, schema_only=schema_only, keep=keep)
        try:
            yield url
        finally:
            if not keep:
                project.delete(branch, name)


class _Project:
    """The calls of Neon's API that are needed, each with the key that no error shows."""

    def __init__(self) -> None:
        settings = load_settings()
        key, self.name = settings.neon_api_key, settings.neon_project
        if key is None or not self.name:
            raise ConfigurationError(
                "a branch at Neon wants ARC_HALO_NEON_API_KEY, a key of your account there, and ARC_HALO_NEON_PROJECT, "
                "the project's id"
            )
        base = settings.neon_api_url.rstrip("/")
        if not base.startswith("https://") and not _is_loopback(base):
            raise ConfigurationError("ARC_HALO_NEON_API_URL must begin with https://: the key is sent there")
        self.client = _client(
            base_url=f"{base}/projects/{self.name}", headers={"Authorization": f"Bearer {key.get_secret_value()}"}
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def branch_of(self, source: URL) -> str:
        """The branch whose endpoint the source's host is."""
        hosts = {str(source.host or ""), str(source.query.get("host", ""))}
        for endpoint in self._ask("GET", "/endpoints").get("endpoints", []):
            if endpoint.get("host") in hosts:
                return str(endpoint["branch_id"])
        raise ConfigurationError(
            f"no endpoint of the Neon project {self.name} is {', '.join(sorted(filter(None, hosts)))}: correct "
            "ARC_HALO_NEON_PROJECT, or clone by template or by dump"
        )

    def create(self, parent: str, name: str, source: URL, *, schema_only: bool, keep: bool) -> tuple[str, URL]:
        branch = {"name": name, "parent_id": parent} | ({"init_source": "schema-only"} if schema_only else {})
        if not keep:
            branch["expires_at"] = f"{datetime.now(UTC) + _LIFE:%Y-%m-%dT%H:%M:%SZ}"
        made = self._ask("POST", "/branches", {"branch": branch, "endpoints": [{"type": "read_write"}]})
        identity = str(made["branch"]["id"])
        try:
            self._wait(made.get("operations", []))
            return identity, _address(made, source)
        except BaseException:
            self.delete(identity, name)
            raise

    def delete(self, branch: str, name: str) -> None:
        try:
            self._ask("DELETE", f"/branches/{branch}")
        except DatabaseError as error:
            raise DatabaseError(f"the branch {name} is still there, and goes within a day: {error}") from error

    def _wait(self, operations: list[dict[str, Any]]) -> None:
        """Wait until the branch and its endpoint are there."""
        deadline = time.monotonic() + _READY_SECONDS
        for operation in operations:
            status = operation.get("status")
            while status not in _OVER:
                if status in _BROKEN or time.monotonic() > deadline:
                    raise DatabaseError(f"Neon did not make the branch: {operation.get('action')} is {status}")
                time.sleep(_POLL_SECONDS)
                status = self._ask("GET", f"/operations/{operation['id']}")["operation"]["status"]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        import httpx

        try:
            response = self.client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise DatabaseUnavailable(f"Neon does not answer {method} {path}: {type(error).__name__}") from None
        if not response.is_success:
            raise DatabaseError(f"Neon refused {method} {path}: {response.status_code} {_message(response)}")
        try:
            answer = response.json() if response.content else {}
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise DatabaseError(f"Neon answered {method} {path} with something that is no JSON object")
        return answer


def _client(**options: Any) -> httpx.Client:
    try:
        import httpx
    except ModuleNotFoundError:
        raise ConfigurationError("a branch at Neon is made by httpx: pip install 'arc-halo[endpoints]'") from None
    return httpx.Client(timeout=_SECONDS, follow_redirects=False, **options)


def _address(made: dict[str, Any], source: URL) -> URL:
    """Where the clone of the source's database is: a branch has all databases, roles and passwords of its parent."""
    told = [make_url(each["connection_uri"]) for each in made.get("connection_uris", [])]
    if told:
        return parse_url(next((url for url in told if url.database == source.database), told[0]))
    return source.set(host=str(made["endpoints"][0]["host"]))


def _message(response: httpx.Response) -> str:
    """What Neon says, which has no key in it."""
    try:
        said = response.json().get("message", "")
    except (ValueError, AttributeError):
        said = ""
    return str(said)[:_SHOWN]


def _is_loopback(base: str) -> bool:
    parts = urlsplit(base)
    return parts.scheme == "http" and parts.hostname in {"127.0.0.1", "::1", "localhost"}

"""Which database a command works on."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL

    from arc_halo.database import Database


@dataclass(frozen=True, slots=True)
class Target:
    """A database that may not be migrated; whether its server is the embedded one."""

    url: URL
    is_embedded: bool

    @property
    def name(self) -> str:
        """What to call it on the terminal: the URL without secrets, unless it is our own."""
        from arc_halo.database import printable

        return "the embedded database" if self.is_embedded else printable(self.url)


@dataclass(frozen=True, slots=True)
class Invocation:
    """What was said before the noun."""

    url: str | None
    blob_url: str | None = None

    def connect(self) -> Database:
        """The database at the code's revision; the embedded one is brought there."""
        from arc_halo.database import connect

        return connect(self.url, blob_url=self.blob_url)

    @contextmanager
    def target(self) -> Iterator[Target]:
        """The database at whatever revision; the embedded server runs as long as the block."""
        from arc_halo.database.embedded import embedded_server
        from arc_halo.database.url import configured_url, parse_url
        from arc_halo.settings import load_settings

        settings = load_settings()
        url = parse_url(self.url) if self.url is not None else configured_url(settings)
        if url is not None:
            yield Target(url, is_embedded=False)
            return
        server = embedded_server(settings.home)
        try:
            yield Target(server.acquire(), is_embedded=True)
        finally:
            server.release()
